"""Writes the scripts of examples/recipes into docs/recipes.md: `python -m docs.recipes`."""

from pathlib import Path

PAGE = Path(__file__).with_name("recipes.md")
SCRIPTS = Path(__file__).parents[1] / "examples" / "recipes"

SECTIONS = (
    ("A plain loop", "plain_loop"),
    ("Two optimizers", "two_optimizers"),
    ("Attention by hand", "attention"),
    ("torch.compile", "compiled"),
    ("Trainer", "trainer"),
    ("Lightning", "lightning_module"),
    ("Accelerate", "accelerate_loop"),
    ("FSDP2", "fsdp2"),
    ("MuonClip", "muon_clip"),
    ("Muon++ in the Trainer", "muon_trainer"),
    ("Muon++ in Lightning", "muon_lightning"),
    ("Muon++ over shards", "muon_fsdp2"),
    ("Tensor parallel", "tensor_parallel"),
    ("Pipeline", "pipeline"),
    ("peft", "lora"),
    ("A recurrent network", "recurrent"),
    ("A mixture of experts", "experts"),
    ("A vision transformer", "vision"),
    ("A script written for wandb", "wandb_script"),
    ("A notebook", "notebook"),
)
"""Heading and script of each recipe, in the order of the page."""


def page() -> str:
    """The whole of docs/recipes.md: its introduction as it stands, and a section for each script."""
    introduction = PAGE.read_text(encoding="utf-8").partition(f"\n## {SECTIONS[0][0]}\n")[0].rstrip()
    return "\n\n".join([introduction, *(section(heading, name) for heading, name in SECTIONS)]) + "\n"


def section(heading: str, name: str) -> str:
    """A heading, where the script lies, and the script."""
    script = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").rstrip()
    return f"## {heading}\n\n`examples/recipes/{name}.py`\n\n```python\n{script}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
