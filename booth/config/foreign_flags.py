"""The options of other training scripts, and what replaces each of them here.

A user who gives such an option to `train`, or such a name in a config, gets the replacement as an answer. The tables of
`docs/guide/migrating.md` say the same; a test compares them.
"""

import re
from collections.abc import Mapping

# Options of train_dreambooth.py, train_dreambooth_lora.py and train_dreambooth_flax.py of diffusers.
DIFFUSERS: Mapping[str, str] = {
    "pretrained_model_name_or_path": "`model.source`: a folder or a hub id; ids that have moved are followed",
    "revision": "`model.revision`",
    "variant": "`model.variant`",
    "tokenizer_name": "not needed: the pipeline's own tokenizer",
    "instance_data_dir": "`instance.images`",
    "instance_prompt": "`instance.prompt`",
    "with_prior_preservation": "on; `prior.weight=0` is off",
    "prior_loss_weight": "`prior.weight`",
    "class_data_dir": "`prior.images`; may be left out",
    "class_prompt": "`prior.prompt`",
    "num_class_images": "`prior.count`, 200",
    "sample_batch_size": "`prior.batch_size`",
    "prior_generation_precision": "not needed: class images are made in `train.precision`",
    "output_dir": "`--workdir`; the pipeline is in its `pipeline/`",
    "seed": "`train.seed`, 0; class images have `prior.seed`",
    "resolution": "`data.resolution`",
    "center_crop": '`data.crop`, "center"; "random" takes `data.crop_variants` crops of each image',
    "train_text_encoder": "`train.text_encoder`, `train.text_encoder_learning_rate`",
    "train_batch_size": "`train.batch_size`, 1: of the whole update, over pieces and devices",
    "gradient_accumulation_steps": "`train.accumulation`: divides `train.batch_size`, where the flag multiplies it",
    "num_train_epochs": "`train.steps`, 800: updates, whatever the accumulation",
    "max_train_steps": "`train.steps`, 800: updates, whatever the accumulation",
    "checkpointing_steps": "`checkpoint.every_steps`, 200; the last step always has one",
    "save_steps": "`checkpoint.every_steps`, 200; the last step always has one",
    "checkpoints_total_limit": "`checkpoint.keep`, 2; `checkpoint.dir` puts them on another disk",
    "resume_from_checkpoint": "always; `--from-step` chooses an older one",
    "gradient_checkpointing": "`train.gradient_checkpointing=block`",
    "learning_rate": "`train.learning_rate`",
    "scale_lr": "not yet: multiply it yourself",
    "lr_scheduler": "`train.lr_schedule`: constant, linear, cosine, cosine_with_restarts, polynomial",
    "lr_warmup_steps": "`train.lr_warmup_steps`, 0; constant_with_warmup is constant with this",
    "lr_num_cycles": "`train.lr_cycles`: of cosine_with_restarts",
    "lr_power": "`train.lr_power`, and `train.lr_end`",
    "use_8bit_adam": "`train.optimizer=adamw8bit` (torchbooth)",
    "adam_beta1": "`train.adam_b1`",
    "adam_beta2": "`train.adam_b2`",
    "adam_weight_decay": "`train.weight_decay`",
    "adam_epsilon": "`train.adam_eps`",
    "max_grad_norm": "`train.max_grad_norm`",
    "mixed_precision": "`train.precision`: fp32, bf16, or fp16 (torchbooth on a GPU)",
    "allow_tf32": "`train.tf32=true`; bf16 is the faster choice",
    "enable_xformers_memory_efficient_attention": "`train.attention=xformers`; PyTorch's own needs no package",
    "set_grads_to_none": "not needed: always so",
    "pre_compute_text_embeddings": "not needed: prompts are encoded once; then the encoder leaves the GPU",
    "dataloader_num_workers": "not needed: images are encoded once, batches made ahead on a thread",
    "offset_noise": "`train.noise_offset=0.1`; any strength",
    "snr_gamma": "`train.min_snr_gamma`",
    "report_to": "not needed: always `metrics.jsonl` and `tensorboard/` in `--workdir`; wandb not yet",
    "logging_dir": "not needed: always `metrics.jsonl` and `tensorboard/` in `--workdir`; wandb not yet",
    "validation_prompt": "`samples.prompts`",
    "num_validation_images": "`samples.images_per_prompt`, 2",
    "validation_steps": "`samples.every_steps`, 0: no previews",
    "validation_epochs": "`samples.every_steps`, 0: no previews",
    "validation_scheduler": "`samples.solver`: `dpm++`; also `ddim`, `euler`, `euler_a`, `pndm`; class images:"
    " `prior.solver`",
    "rank": "`adapter.rank`, 16; with `adapter.kind=lora`",
    "push_to_hub": "`--push-to-hub owner/name`, or later `push --run RUN --to owner/name`; private unless `--public`",
    "hub_model_id": "`--push-to-hub owner/name`, or later `push --run RUN --to owner/name`; private unless `--public`",
    "hub_token": "not needed: `HF_TOKEN` or `hf auth login`, so that no token stands in a command",
    "local_rank": "not needed: `torchrun` and `accelerate launch` say it",
    "tokenizer_max_length": "not needed: the text encoder's window; what a prompt loses is said",
    "text_encoder_use_attention_mask": "not yet: Stable Diffusion 1 and 2 are trained without",
    "skip_save_text_encoder": "not needed: a pipeline is whole",
    "validation_images": "not yet: for models of other kinds",
    "class_labels_conditioning": "not yet: for models of other kinds",
    "pretrained_vae_name_or_path": "not yet: the pipeline's own VAE",
}

# Options of train_network.py and train_db.py of kohya's sd-scripts whose names are not in the table above.
KOHYA: Mapping[str, str] = {
    "v2": "not needed: read from the model",
    "v_parameterization": "not needed: read from the model",
    "train_data_dir": "`instance.images`: folders such as `10_sks dog` are understood",
    "reg_data_dir": "`prior.images`",
    "dataset_config": "`concepts`, or `instance.images` with folders such as `10_sks dog`",
    "dataset_repeats": "`instance.repeats`: beside other `concepts`; of one subject, `train.steps` says how often",
    "config_file": "`--config`: a file of our fields",
    "output_name": "`--workdir`; a file for WebUIs gets its name from `export --out`",
    "save_model_as": "not needed: `export --format` writes what WebUIs read",
    "save_precision": "`export.precision`",
    "save_every_n_steps": "`checkpoint.every_steps`, 200",
    "save_every_n_epochs": "`checkpoint.every_steps`, 200",
    "save_last_n_steps": "`checkpoint.keep`, 2: how many",
    "save_last_n_epochs": "`checkpoint.keep`, 2: how many",
    "save_state": "not needed: always so; the same command resumes",
    "save_state_on_train_end": "not needed: always so; the same command resumes",
    "resume": "not needed: the same command resumes; `--from-step` chooses an older checkpoint",
    "max_train_epochs": "`train.steps`, 800: updates",
    "unet_lr": "`train.learning_rate`",
    "text_encoder_lr": "`train.text_encoder_learning_rate`, with `train.text_encoder=true`",
    "learning_rate_te": "`train.text_encoder_learning_rate`, with `train.text_encoder=true`",
    "network_module": "`adapter.kind=lora`",
    "network_dim": "`adapter.rank`, 16",
    "network_alpha": "`adapter.alpha`: the rank where it is not given",
    "network_dropout": "`adapter.dropout`",
    "network_args": "`adapter.targets`: all has the convolutions too",
    "network_train_unet_only": "`train.text_encoder=false`: as it comes",
    "network_train_text_encoder_only": "`train.unet=false` with `train.text_encoder=true`",
    "network_weights": "not yet: `merge --lora` puts a LoRA into the model, which then trains on",
    "base_weights": "not yet: `merge --lora` puts a LoRA into the model, which then trains on",
    "scale_weight_norms": "not yet: `train.weight_decay` holds weights small",
    "stop_text_encoder_training": "not yet; -1 is `train.text_encoder=false`",
    "optimizer_type": "`train.optimizer`: adamw, adamw8bit, lion, lion8bit, adafactor, prodigy",
    "optimizer_args": "`train.weight_decay`, `train.adam_b1`, `train.adam_b2`, `train.adam_eps`",
    "use_lion_optimizer": "`train.optimizer=lion` (torchbooth)",
    "lr_scheduler_num_cycles": "`train.lr_cycles`: of cosine_with_restarts",
    "lr_scheduler_power": "`train.lr_power`, and `train.lr_end`",
    "full_bf16": "`memory.weights=bf16` with `train.precision=bf16` (torchbooth)",
    "full_fp16": "not yet: float16 computes, and float32 weights train",
    "fp8_base": "not yet: `memory.fit` makes a run fit",
    "fused_backward_pass": "`memory.fused_backward=true` (torchbooth)",
    "xformers": "`train.attention=xformers`; PyTorch's own needs no package",
    "sdpa": "not needed: always so, but with `train.attention=xformers`",
    "mem_eff_attn": "not needed: attention keeps no matrix of weights",
    "torch_compile": "`train.compile`",
    "cache_latents": "not needed: images are encoded once and kept in `--workdir`",
    "cache_latents_to_disk": "not needed: images are encoded once and kept in `--workdir`",
    "vae_batch_size": "`data.encode_batch_size`",
    "vae": "not yet: the pipeline's own VAE",
    "no_half_vae": "not needed: the VAE computes in float32",
    "enable_bucket": "`data.buckets=auto`",
    "min_bucket_reso": "`data.buckets`: sizes such as 512x512 and 448x576",
    "max_bucket_reso": "`data.buckets`: sizes such as 512x512 and 448x576",
    "bucket_reso_steps": "`data.buckets`: sizes such as 512x512 and 448x576",
    "bucket_no_upscale": "not yet: small images are enlarged, which is said",
    "flip_aug": "`data.flip=true`",
    "random_crop": "`data.crop=random`",
    "color_aug": "not yet: images are encoded once",
    "face_crop_aug_range": "not yet; `data.crop=focal` crops where most stands out",
    "caption_extension": "`instance.captions=text`: X.txt beside X.jpg",
    "shuffle_caption": "`instance.shuffled_captions`: how many orders",
    "keep_tokens": "`instance.kept_tags`, 1",
    "caption_dropout_rate": "`instance.caption_dropout`",
    "caption_tag_dropout_rate": "not yet; `instance.caption_dropout` leaves out whole captions",
    "caption_prefix": "`instance.prompt`, such as 'sks dog, {caption}'",
    "caption_suffix": "`instance.prompt`, such as '{caption}, sks dog'",
    "max_token_length": "not yet: the text encoder's window; what a prompt loses is said",
    "clip_skip": "not yet: the last layer, as the model was trained",
    "noise_offset": "`train.noise_offset`",
    "multires_noise_iterations": "not yet; `train.noise_offset` is for very light or dark pictures too",
    "multires_noise_discount": "not yet; `train.noise_offset` is for very light or dark pictures too",
    "ip_noise_gamma": "not yet",
    "min_snr_gamma": "`train.min_snr_gamma`",
    "debiased_estimation_loss": "`train.debiased_estimation=true`",
    "zero_terminal_snr": "`train.zero_terminal_snr=true`",
    "loss_type": "`train.loss`: mse, huber, smooth_l1",
    "huber_c": "`train.huber_delta`",
    "huber_schedule": "`train.huber_schedule`",
    "min_timestep": "not yet: all timesteps",
    "max_timestep": "not yet: all timesteps",
    "masked_loss": "`instance.masks=files`, or alpha",
    "alpha_mask": "`instance.masks=alpha`",
    "conditioning_data_dir": "`instance.masks=files`: X-mask.png beside X.jpg",
    "sample_every_n_steps": "`samples.every_steps`",
    "sample_every_n_epochs": "`samples.every_steps`",
    "sample_prompts": "`samples.prompts`",
    "sample_sampler": "`samples.solver`",
    "sample_at_first": "`samples.before_after=true`",
    "max_data_loader_n_workers": "not needed: images are encoded once, batches made ahead on a thread",
    "persistent_data_loader_workers": "not needed: images are encoded once, batches made ahead on a thread",
    "lowram": "not needed; `memory.fit` makes a run fit",
    "highvram": "not needed; `memory.fit` makes a run fit",
    "log_with": "not needed: always `metrics.jsonl` and `tensorboard/` in `--workdir`; wandb not yet",
    "training_comment": "not yet; `export --title` names a file for WebUIs",
    "no_metadata": "not yet: a LoRA file says what it is",
    "weighted_captions": "not yet: prompts have no weights",
    "huggingface_repo_id": "`--push-to-hub owner/name`, or later `push --run RUN --to owner/name`",
}

_FLAGS = {**KOHYA, **DIFFUSERS}
_FIELD = re.compile(r"`((\w+\.\w+)(=\w+)?)`")  # a field at the beginning of an entry replaces the option


def field_of(name: str) -> str | None:
    """Return our field for an option of those scripts, by name; None if there is no such option or no such field."""
    match = _FIELD.match(_FLAGS.get(name, ""))
    return match[2] if match else None


def answer(argument: str) -> str | None:
    """Return the answer to an option of those scripts; None for other arguments.

    The option may be given as `--name` or `--name=value`, and with `-` for `_`.
    """
    name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
    if not argument.startswith("--") or name not in _FLAGS:
        return None
    here = _FLAGS[name]
    if match := _FIELD.match(here):
        rest = here[match.end() :].strip(":;, ")
        here = f"--config.{match[1]}{'' if match[3] else '=VALUE'}{f' ({rest})' if rest else ''}"
    said = here.replace("`", "")
    return f"--{name} is an option of other scripts; here: {said}; docs/guide/migrating.md has all of them"
