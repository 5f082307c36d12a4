"""``run``: a recipe, stage by stage, in a folder; what has not changed is not done again."""

from __future__ import annotations

from vitdeploy.pipeline.recipe import Recipe, default_text, read_recipe
from vitdeploy.pipeline.running import RunResult, StageOutcome, run

__all__ = ["Recipe", "RunResult", "StageOutcome", "default_text", "read_recipe", "run"]
