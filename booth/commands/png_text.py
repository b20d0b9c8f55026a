"""What one image is made of, and the text about it that WebUIs keep inside a PNG."""

import json
from dataclasses import dataclass

# As AUTOMATIC1111's WebUI names them; it takes Karras' schedule for DPM++ 2M unless another is named.
_SAMPLERS = {
    "dpm++": {"Sampler": "DPM++ 2M", "Schedule type": "Uniform"},
    "ddim": {"Sampler": "DDIM"},
    "euler": {"Sampler": "Euler"},
    "euler_a": {"Sampler": "Euler a"},
    "pndm": {"Sampler": "PLMS"},
}


@dataclass(frozen=True)
class Recipe:
    """One image of the `sample` command, but for its size and model; `checkpoint` is the step of a run's, whose LoRA
    counts `lora_weight` times as much as it was trained to."""

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
        """What all images of one batch have in common."""
        return self.solver, self.steps, self.guidance


def infotext(recipe: Recipe, size: tuple[int, int], model: str, model_hash: str = "") -> str:
    """The PNG text `parameters` as AUTOMATIC1111's WebUI writes it (`create_infotext`) and many programs read it.

    Prompt and negative prompt stand there as they are, line breaks too; a line of a prompt that begins with "Negative
    prompt:" would be read as one. A WebUI's own noise differs, so the same settings make another picture there.
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
    """As JSON where a reader would take a part of it for the next field."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',\n:"') else value
