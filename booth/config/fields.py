"""The table of all settings of a run: the name, default, rule and meaning of each.

A default is written nowhere else in the project. The defaults are the recipe that is known to work for one object with
Stable Diffusion 1.5.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from booth.config.choices import LOSSES, SOLVERS, SOURCES


@dataclass(frozen=True)
class Rule:
    """A check of one value.

    `text` completes the sentence "it must be ..."; `choices` are all allowed values, if the rule lists them.
    """

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[Any, ...] = ()


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    return Rule(f"greater than {low}", lambda value: value > low)


def below_one() -> Rule:
    return Rule("at least 0 and less than 1", lambda value: 0 <= value < 1)


def one_of(*choices: Any) -> Rule:
    return Rule("one of " + ", ".join(repr(choice) for choice in choices), lambda value: value in choices, choices)


def equal(wanted: Any) -> Rule:
    return Rule(repr(wanted), lambda value: value == wanted)


def filled(what: str) -> Rule:
    return Rule(f"a list of {what}", bool)


def _are_tokens(entries: tuple[str, ...]) -> bool:
    parts = [entry.partition("=") for entry in entries]
    tokens = [token for token, _, _ in parts]
    whole = all(
        token and word and not re.search(r"\s", entry) for (token, _, word), entry in zip(parts, entries, strict=True)
    )
    return whole and len(set(tokens)) == len(tokens)


def memory_size(text: str) -> float | None:
    """Return the bytes of a size such as 8GB, with 2**30 bytes a GB as for graphics cards; None for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GB|GiB|G)", text, re.IGNORECASE)
    return float(match[1]) * 2**30 if match and 0 < float(match[1]) < math.inf else None


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return text != ""


SEED = Rule("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
ANY = Rule("anything", lambda value: True)


def packages(backends: tuple[str, ...]) -> str:
    """Return the names of the backends' packages, joined for a sentence: "jaxbooth and torchbooth"."""
    return " and ".join(f"{backend}booth" for backend in backends)


AUTO = "auto"  # only this value means that booth chooses: 0 means 0, or is refused


@dataclass(frozen=True)
class Needs:
    """What another field must be so that a field has an effect."""

    name: str
    rule: Rule
    refused: bool = True  # False: only a log line tells, as shared configs set such fields and switch them off

    def hold(self, value: Any) -> bool:
        """Return whether the field has an effect with this value, of any type, of the other field."""
        try:
            return self.rule.holds(value)
        except TypeError:  # not a value of that field; its own check refuses it
            return True


@dataclass(frozen=True)
class Field:
    """One setting of a run."""

    name: str
    default: Any
    about: str
    rule: Rule = ANY
    may_change: bool = False  # on resume: such a change only makes the run longer, slower or more talkative
    is_path: bool = False  # "~" means the home folder, and paths become absolute
    auto: type | None = None  # the type of its values if AUTO is allowed too
    instead: str = ""  # if 0 is refused: how to say what people mean by 0
    needs: tuple[Needs, ...] = ()  # it has an effect if one of them holds; (): always
    backends: tuple[str, ...] = ()  # only these allow another value than the default; (): all
    value_backends: Mapping[Any, tuple[str, ...]] = field(default_factory=dict)  # values that only some backends have
    sharded: Mapping[str, Rule] = field(default_factory=dict)  # by backend: the rule with mesh.fsdp above 1
    bucket_backends: tuple[str, ...] = ()  # only with these a path may be gs://BUCKET/FOLDER

    @property
    def meaning(self) -> str:
        """What the field means, and which backends have it."""
        by_backends: dict[str, list[Any]] = {}
        for value, backends in self.value_backends.items():
            by_backends.setdefault(packages(backends), []).append(value)
        parts = [f"{packages(self.backends)}: {self.about}" if self.backends else self.about]
        parts += [f"only {name}: {', '.join(map(str, values))}" for name, values in by_backends.items()]
        parts += [f"with mesh.fsdp in {packages((name,))} {rule.text}" for name, rule in self.sharded.items()]
        parts += [f"only {packages(self.bucket_backends)}: also gs://BUCKET/FOLDER"] * bool(self.bucket_backends)
        return "; ".join(parts)

    def backends_with(self, value: Any) -> tuple[str, ...]:
        """Return the backends that have this value, if only some have it; () if all have it."""
        return self.value_backends.get(value, ()) if self.value_backends else self.backends * (value != self.default)

    def rule_of(self, backend: str) -> Rule:
        """Return the rule of this field for a backend that lacks the field, or some of its values."""
        others = {value for value in self.value_backends if backend not in self.value_backends[value]}
        if others:
            return one_of(*(choice for choice in self.rule.choices if choice not in others))
        return equal(self.default)

    @property
    def kind(self) -> type:
        """The type of the field's values other than AUTO."""
        return self.auto or type(self.default)

    @property
    def said_rule(self) -> str:
        """The text of the rule, with AUTO if it is allowed."""
        return self.rule.text + f", or {AUTO!r}" * bool(self.auto)


_LORA = (Needs("adapter.kind", equal("lora")),)
_PRIOR = (Needs("prior.weight", above(0), refused=False),)
_TOKENS = (Needs("tokens.add", filled("tokens")),)
_PSEUDO_HUBER = (Needs("train.loss", one_of("huber", "smooth_l1")),)
_ADAM = (Needs("train.optimizer", one_of("adamw", "prodigy", "adamw8bit"), refused=False),)
_PREVIEWS = (
    Needs("samples.every_steps", above(0), refused=False),
    Needs("samples.before_after", equal(True), refused=False),
)
_TORCH, _JAX = ("torch",), ("jax",)


def _whole_in_torch(*choices: Any) -> dict[str, Rule]:
    """Return the rule with FSDP in torchbooth: other values need whole tensors, which FSDP splits over processes."""
    return {"torch": equal(*choices) if len(choices) == 1 else one_of(*choices)}


FIELDS = (
    # Paths may change, as files may be moved: hashes in the manifest identify files, and the run's id checkpoints.
    Field("model.source", "", "folder of a diffusers pipeline (model_index.json, unet/, ...), hub id owner/name,"
          " single-file checkpoint X.safetensors, or 'embedded', the small base that comes with booth", may_change=True,
          is_path=True),
    Field("model.config", "", "folder or hub id with the configs and tokenizer of a single-file checkpoint; empty: the"
          " published model of its family", may_change=True, is_path=True),
    Field("model.revision", "", "branch, tag or commit of a hub model; empty: its default branch", may_change=True),
    Field("model.variant", "", "weight file variant, such as fp16"),
    Field("concepts", (), "several subjects in one run: for each its own fields of instance and prior, such as"
          " {instance.images: ..., instance.prompt: ..., prior.prompt: ...}, and weight, how much it counts"),
    Field("instance.images", "", "folder with the photos of the subject; or a dataset: Parquet or Arrow files, a folder"
          " that `datasets` saved, or the id of one on the hub, owner/name", may_change=True, is_path=True),
    Field("instance.revision", "", "branch, tag or commit of a hub dataset; empty: its default branch",
          may_change=True),
    Field("instance.image_column", "image", "column of the images in a dataset"),
    Field("instance.prompt", "", "prompt with identifier and class noun, such as 'a photo of sks dog'; with captions:"
          " empty, or a text around each caption: 'a photo of sks car, {caption}'"),
    Field("instance.captions", "none", "where each photo's caption is: none: instance.prompt for all; text: X.txt"
          " beside X.jpg; names: the files' names; metadata: metadata.jsonl or metadata.csv in the folder, or a column"
          " of the dataset",
          one_of(*SOURCES)),
    Field("instance.caption_column", "text", "column of the captions in the metadata file or the dataset",
          needs=(Needs("instance.captions", equal("metadata")),)),
    Field("instance.caption_dropout", 0.0, "share of photos shown without any caption", below_one()),
    Field("instance.shuffled_captions", 0, "orders of a caption's comma-separated tags to train with; 0: as written",
          at_least(0)),
    Field("instance.kept_tags", 1, "first tags that keep their place when captions are shuffled", at_least(0),
          needs=(Needs("instance.shuffled_captions", above(0)),)),
    Field("instance.masks", "none", "how photos mark the subject: alpha: by their transparency; files: by X-mask.png"
          " beside X.jpg, white where the subject is", one_of("none", "alpha", "files")),
    Field("instance.background_weight", 0.0, "weight in the loss of what lies outside the mask",
          Rule("from 0 to 1", lambda value: 0 <= value <= 1),
          needs=(Needs("instance.masks", one_of("alpha", "files")),)),
    Field("instance.repeats", 1, "how often each photo is shown while photos of other concepts are shown once",
          at_least(1), needs=(Needs("concepts", filled("several subjects (of one, train.steps says how often)")),)),
    Field("prior.weight", 1.0, "lambda, the weight of the class images in the loss; 0: no class images", at_least(0)),
    Field("prior.prompt", "", "prompt of the class, such as 'a photo of dog'"),
    Field("prior.images", "", "folder of class images; they are used first, and missing ones are added; empty:"
          " RUN/class_images",
          may_change=True, is_path=True, needs=_PRIOR),
    Field("prior.count", 200, "class images to train with; auto: 200", at_least(1), may_change=True, auto=int,
          instead="to train without class images set prior.weight=0", needs=_PRIOR),
    Field("prior.solver", "dpm++", "solver for class images", one_of(*SOLVERS), needs=_PRIOR),
    Field("prior.inference_steps", 25, "denoising steps for a class image", at_least(1), needs=_PRIOR),
    Field("prior.guidance", 7.5, "classifier-free guidance scale of class images", at_least(0), needs=_PRIOR),
    Field("prior.seed", 0, "seed of class images; not train.seed, so that runs can share class images", SEED,
          needs=_PRIOR),
    Field("prior.batch_size", 4, "class images sampled at once", at_least(1)),
    Field("train.steps", 800, "optimizer updates; auto: 150 for each photo", at_least(1), may_change=True, auto=int,
          instead="to make pictures with an untrained model use the command sample"),
    Field("train.batch_size", 1, "instance images in an update, over all devices; as many class images are added",
          at_least(1)),
    Field("train.accumulation", 1, "pieces that an update is computed in; more need less memory, for the same result",
          at_least(1), may_change=True),
    Field("train.learning_rate", 5e-6, "peak learning rate; auto: 5e-6, with LoRA 1e-4, with prodigy 1", above(0),
          may_change=True, auto=float, instead="to leave the UNet as it is set train.unet=false",
          needs=tuple(Needs(name, equal(True), refused=False) for name in ("train.unet", "train.text_encoder"))),
    Field("train.lr_schedule", "constant", "shape of the learning rate after warmup",
          one_of("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"), may_change=True),
    Field("train.lr_warmup_steps", 0, "updates of linear warmup from 0", at_least(0), may_change=True),
    Field("train.lr_cycles", 1, "how often cosine_with_restarts falls from the peak to 0", at_least(1),
          may_change=True, needs=(Needs("train.lr_schedule", equal("cosine_with_restarts")),)),
    Field("train.lr_power", 1.0, "exponent of the polynomial schedule", above(0), may_change=True,
          needs=(Needs("train.lr_schedule", equal("polynomial")),)),
    Field("train.lr_end", 1e-7, "last learning rate of the polynomial schedule; the text encoder's ends in proportion",
          at_least(0), may_change=True, needs=(Needs("train.lr_schedule", equal("polynomial")),)),
    Field("train.precision", "fp32", "compute type: float32, bfloat16, or float16 with loss scaling",
          one_of("fp32", "bf16", "fp16"), value_backends={"fp16": _TORCH},
          sharded=_whole_in_torch("fp32", "bf16")),
    Field("train.unet", True, "train the UNet; false: only the text encoder or new tokens"),
    Field("train.text_encoder", False, "train the text encoder too (in float32)"),
    Field("train.text_encoder_learning_rate", AUTO, "peak learning rate of the text encoder; auto: train.learning_rate",
          above(0), may_change=True, auto=float, needs=(Needs("train.text_encoder", equal(True)),),
          instead="to leave the text encoder as it is set train.text_encoder=false"),
    Field("train.optimizer", "adamw", "optimizer; prodigy finds the learning rate, of which train.learning_rate,"
          " then 1, is a factor; adamw8bit and lion8bit keep moments in 8 bits; lion needs a third to a tenth of"
          " AdamW's learning rate",
          one_of("adamw", "prodigy", "adamw8bit", "lion", "lion8bit", "adafactor"),
          value_backends=dict.fromkeys(("adamw8bit", "lion", "lion8bit", "adafactor"), _TORCH),
          sharded=_whole_in_torch("adamw")),
    Field("train.adam_b1", 0.9, "decay of the first moment", below_one(), needs=_ADAM),
    Field("train.adam_b2", 0.999, "decay of the second moment", below_one(), needs=_ADAM),
    Field("train.adam_eps", 1e-8, "epsilon that is added to the root of the second moment", above(0), needs=_ADAM),
    Field("train.weight_decay", 1e-2, "decoupled weight decay", at_least(0)),
    Field("train.pull", 0.0, "decoupled pull of all weights towards the base's, as weight decay pulls to 0; it has a"
          " clear effect if learning rate x pull x steps is about 1: with the defaults at 250; 0: none", at_least(0)),
    Field("train.max_grad_norm", 1.0, "gradients are clipped jointly to this global norm; 0: not clipped", at_least(0)),
    Field("train.loss", "mse", "loss of an error: mse: its square; huber, smooth_l1: pseudo-Huber losses, in which"
          " large errors count less", one_of(*LOSSES)),
    # The square of this number must fit into float32.
    Field("train.huber_delta", 0.1, "error above which pseudo-Huber losses grow linearly, at the noisiest timestep",
          Rule("from 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6), needs=_PSEUDO_HUBER),
    Field("train.huber_schedule", "snr", "train.huber_delta at less noisy timesteps: the same (constant), or going to"
          " 1 by the signal-to-noise ratio (snr) or exponentially", one_of("constant", "snr", "exponential"),
          needs=_PSEUDO_HUBER),
    Field("train.min_snr_gamma", 0.0, "gamma of the min-SNR loss weights, usually 5; 0: all timesteps count alike",
          at_least(0)),
    Field("train.debiased_estimation", False, "use the loss weights of debiased estimation, instead of min-SNR's:"
          " 1/sqrt(SNR), or 1/(SNR + 1) for a model that predicts the velocity"),
    Field("train.zero_terminal_snr", False, "train with a noise schedule that ends in pure noise, for very light or"
          " dark pictures; only for a model that predicts the velocity; the export's scheduler config says so"),
    Field("train.noise_offset", 0.0, "noise added to whole channels, such as 0.1, for very light or dark pictures",
          at_least(0)),
    Field("train.gradient_checkpointing", "none", "what the backward pass computes again instead of keeping it: the"
          " weights of attention, or the inside of every block; this needs less memory and is slower",
          one_of("none", "attention", "block"), may_change=True, value_backends={"attention": _JAX}),
    Field("train.checkpointed_blocks", (), "the UNet's blocks that gradient_checkpointing='block' is for,"
          " such as down_blocks.0; empty: all", Rule("names such as 'down_blocks.0', 'mid_block' and 'up_blocks.3'",
          lambda value: all(re.fullmatch(r"(down|up)_blocks\.\d+|mid_block", name) for name in value)),
          may_change=True, needs=(Needs("train.gradient_checkpointing", equal("block")),), backends=_TORCH),
    Field("train.attention", "auto", "how attention is computed; auto: by the device",
          one_of("auto", "plain", "chunked", "splash", "cudnn", "xformers"), may_change=True,
          value_backends={**dict.fromkeys(("plain", "chunked", "splash", "cudnn"), _JAX), "xformers": _TORCH}),
    Field("train.channels_last", False, "convolutions with the channels innermost, which may be faster on GPUs"
          " with tensor cores", backends=_TORCH,
          sharded=_whole_in_torch(False)),
    Field("train.compile", "none", "mode of torch.compile for the UNet, on a GPU; it takes minutes at the start",
          one_of("none", "default", "reduce-overhead", "max-autotune"), may_change=True, backends=_TORCH,
          sharded=_whole_in_torch("none")),
    Field("train.tf32", False, "float32 products in TF32 on GPUs that have it: faster, with 10 bits of precision",
          may_change=True, backends=_TORCH),
    Field("train.seed", 0, "seed of everything random except class images", SEED),
    Field("adapter.kind", "none", "what trains: none: all weights of the networks; lora: low-rank adapters of their"
          " layers, which take a few megabytes and need a learning rate of about 1e-4", one_of("none", "lora"),
          sharded=_whole_in_torch("none")),
    Field("adapter.rank", 16, "rank of the adapters", at_least(1), needs=_LORA,
          instead="to train without adapters set adapter.kind=none"),
    Field("adapter.alpha", AUTO, "an adapter's output is scaled by alpha / rank; auto: alpha is the rank", above(0),
          auto=float, instead="to train without adapters set adapter.kind=none", needs=_LORA),
    Field("adapter.dropout", 0.0, "share of an adapter's inputs that is left out in training", below_one(),
          needs=_LORA),
    Field("adapter.targets", "feed_forward", "layers that get an adapter: cross_attention, attention, feed_forward"
          " (attention too), all (convolutions too), or a regular expression for whole names",
          Rule("cross_attention, attention, feed_forward, all or a regular expression", _is_regex), needs=_LORA),
    Field("tokens.add", (), "new tokens for prompts and captions, each with a word whose embedding it begins with, such"
          " as '<saya_token>=girl'; of a new token only the embedding trains",
          Rule("like '<saya_token>=girl', without spaces, each token once", _are_tokens)),
    Field("tokens.learning_rate", 5e-4, "peak learning rate of new tokens", above(0), may_change=True, needs=_TOKENS,
          instead="to train no new tokens leave tokens.add empty"),
    Field("tokens.fraction", 1.0, "share of train.steps in which new tokens train, from the first step on",
          Rule("greater than 0 and at most 1", lambda value: 0 < value <= 1), may_change=True, needs=_TOKENS,
          instead="to train no new tokens leave tokens.add empty"),
    Field("ema.decay", 0.0, "decay of an exponential moving average of what trains, which previews and the export use;"
          " 0: none; 0.9999 is usual; after n updates the decay is at most (1 + n) / (10 + n)", below_one()),
    Field("ema.device", "device", "where the average is kept: on the device, or in the host's memory, from which every"
          " update fetches it", one_of("device", "host"), may_change=True,
          needs=(Needs("ema.decay", above(0)),),
          sharded=_whole_in_torch("device")),
    Field("data.resolution", 512, "side of the square training images, in pixels", at_least(8)),
    Field("data.buckets", (), "sizes of training images, such as 512x512 and 448x576; each image gets the size with"
          " the nearest aspect ratio; auto: all sizes with the resolution's area; empty: squares",
          Rule("'auto', or sizes such as '448x576'",
          lambda value: all(re.fullmatch(r"auto|[1-9]\d{0,4}x[1-9]\d{0,4}", size) for size in value))),
    Field("data.crop", "center", "which part of an image is kept; focal: the part that stands out most",
          one_of("center", "random", "focal")),
    Field("data.crop_variants", 4, "crops kept of each image when crop is random", at_least(1),
          needs=(Needs("data.crop", equal("random")),)),
    Field("data.flip", False, "also train on mirrored images (not for faces or lettering)"),
    Field("data.encode_batch_size", 4, "images that the VAE encodes at once", at_least(1)),
    Field("checkpoint.every_steps", 200, "updates between checkpoints; 0: only the last", at_least(0), may_change=True),
    Field("checkpoint.keep", 2, "number of newest checkpoints that are kept", at_least(1), may_change=True,
          instead="a run resumes from the newest; to keep all give a large number"),
    Field("checkpoint.dir", "", "folder for the checkpoints of this run only; empty: RUN/checkpoints", may_change=True,
          is_path=True, bucket_backends=_JAX),
    Field("samples.every_steps", 0, "updates between previews; 0: none", at_least(0), may_change=True),
    Field("samples.prompts", (), "prompts of the previews; empty: instance.prompt and prior.prompt", may_change=True,
          needs=_PREVIEWS),
    Field("samples.images_per_prompt", 2, "images of each prompt, seeds 0, 1, ...", at_least(1), may_change=True,
          instead="to make no previews set samples.every_steps=0", needs=_PREVIEWS),
    Field("samples.solver", "dpm++", "solver for previews", one_of(*SOLVERS), may_change=True),
    Field("samples.inference_steps", 25, "denoising steps of a preview", at_least(1), may_change=True),
    Field("samples.guidance", 7.5, "guidance scale of previews", at_least(0), may_change=True),
    Field("samples.before_after", False, "one picture at the end, RUN/samples/before_after.png: what the base makes"
          " of the prompts and what the tuned model makes of them", may_change=True),
    Field("export.precision", "source", "type of RUN/pipeline; source: trained float32, the rest as it was",
          one_of("source", "fp32", "fp16", "bf16"), may_change=True),
    Field("log.every_steps", 10, "updates whose metrics are read together", at_least(1), may_change=True),
    Field("memory.fit", "", "memory of a GPU, such as '8GB', or 'auto': its free memory, if there is a GPU; techniques"
          " are chosen so that the run fits", Rule("empty, 'auto' or a size such as '8GB'",
          lambda value: value in ("", "auto") or memory_size(value) is not None), may_change=True, backends=_TORCH),
    Field("memory.weights", "fp32", "type in which the UNet's weights are kept and trained; bf16: no"
          " float32 copy; updates are rounded stochastically", one_of("fp32", "bf16"),
          backends=_TORCH,
          sharded=_whole_in_torch("fp32")),
    Field("memory.fused_backward", False, "each tensor is updated as soon as its gradient is known, and the"
          " gradient is freed; gradients are clipped by the norm of those so far and of the last update",
          backends=_TORCH,
          sharded=_whole_in_torch(False)),
    Field("memory.offload_optimizer", "none", "when optimizer states are in the host's memory: sampling: while"
          " previews are made; always: except for the update of each tensor", one_of("none", "sampling", "always"),
          may_change=True, backends=_TORCH,
          sharded=_whole_in_torch("none")),
    Field("memory.vae_tiling", False, "pictures are decoded in four tiles, which needs a quarter of the memory",
          may_change=True, backends=_TORCH),
    Field("mesh.fsdp", 1, "devices that share one copy of weights and optimizer states (FSDP)", at_least(1),
          may_change=True),
    Field("mesh.topology", "", "TPU slice that a plan is for, such as v3:2x2; training uses the devices that are there",
          may_change=True),
)  # fmt: skip
