"""The recipe of one image, and the text about it that WebUIs store inside a PNG."""

import json
from dataclasses import dataclass

# AUTOMATIC1111's WebUI uses these names. Without a named schedule it uses Karras' schedule for DPM++ 2M.
_SAMPLERS = {
    "dpm++": {"Sampler": "DPM++ 2M", "Schedule type": "Uniform"},
    "ddim": {"Sampler": "DDIM"},
    "euler": {"Sampler": "Euler"},
    "euler_a": {"Sampler": "Euler a"},
    "pndm": {"Sampler": "PLMS"},
}


@dataclass(frozen=True)
class Recipe:
    """What the command `sample` makes one image from, except for the size and the model.

    `checkpoint` is the step of a run's checkpoint; `lora_weight` scales the LoRA of that run.
    """

    prompt: str
    negative_prompt: str
    seed: int
    solver: str
    steps: int
    guidance: float
    checkpoint: int | None = None
    lora_weight: float | None = None

    @property
    def settings(self) -> tuple[str, int, float]:
        """(solver, steps, guidance), which all images of one batch have in common."""
        return self.solver, self.steps, self.guidance


def infotext(recipe: Recipe, size: tuple[int, int], model: str, model_hash: str = "") -> str:
    """Return the PNG text `parameters` as AUTOMATIC1111's WebUI writes it (`create_infotext`) and many programs read.

    `size` is (width, height) in pixels. Prompt and negative prompt are not changed and keep their line breaks, so a
    line of a prompt that begins with "Negative prompt:" would be read as the negative prompt. The noise of a WebUI is
    different, so the same settings make another picture there.
    """
    fields = {
        "Steps": recipe.steps,
        **_SAMPLERS[recipe.solver],
        "CFG scale": f"{recipe.guidance:.12g}",
        "Seed": recipe.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash,
        "Model": model,
        "LoRA weight": "" if recipe.lora_weight is None else f"{recipe.lora_weight:.12g}",
    }
    negative = f"\nNegative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""
    listed = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items() if value != "")
    return f"{recipe.prompt}{negative}\n{listed}".strip().replace("\0", " ")  # a NUL would end the text


def _quoted(value: str) -> str:
    """Return a value as it is, or as JSON if a reader could take part of it for the next field."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',\n:"') else value
