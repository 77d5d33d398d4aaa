"""`Config`: everything that one run is, as one frozen value."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jaxloop.loop.judges import decoder_rows, first_problems, pair_problems
from jaxloop.loop.kinds import kind_problems
from jaxloop.loop.recipe import (
    Evaluation,
    OfflineStage,
    Online,
    PromptStage,
    Recipe,
    Rounds,
    SupervisedStage,
)
from jaxloop.mesh import MeshShape, divisibility_problems
from jaxloop.models.decoder import ModelShape, Remat, cut_sizes
from jaxloop.models.mta import MtaShape
from jaxloop.prompts.tokenizer import Tokenizer, character_tokenizer, load_tokenizer


@dataclass(frozen=True)
class Model:
    """A checkpoint to start from, or a shape to make a new model of."""

    path: str = ""
    """A Hugging Face directory, or a hub id where there is a network."""
    revision: str = ""
    """Branch, tag or commit of a hub id."""
    shape: ModelShape | None = None
    """Sizes of a new, random model; none where `path` says it."""
    outputs: int = 0
    """Outputs of a scalar head on the model: rewards, or PPO's values. 0: none, or as
    many as the checkpoint has."""
    mta: MtaShape | None = None
    """Multi-Token Attention in place of the model's plain attention; it starts as the
    identity. None: as the checkpoint has it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What matrix products compute in."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters are stored in."""
    remat: Remat = "full"
    """What the backward pass recomputes to save memory."""


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer that lies beside the model."""

    path: str = ""
    """Another directory to take it from; empty is the model's."""
    chat_template: str = ""
    """A Jinja template for conversations, where the tokenizer has none."""

    def load(self, model_path: str) -> Tokenizer:
        return load_tokenizer(self.path or model_path, chat_template=self.chat_template)


@dataclass(frozen=True)
class Characters:
    """One token a character, made on the spot."""

    alphabet: str = "0123456789+=;#"

    def load(self, model_path: str) -> Tokenizer:
        return character_tokenizer(self.alphabet)


@dataclass(frozen=True)
class Checkpointing:
    """When the state is written, and how much of it is kept."""

    every: int = 100
    """Updates between checkpoints inside a stage; stages always end with one."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    best: str = ""
    """A held-out metric whose best checkpoint is kept too, for example `eval/accuracy`:
    each evaluation is then saved, and OUT/checkpoints/best names the best."""


@dataclass(frozen=True)
class Config:
    """One experiment. Files under `configs/` return it; the command line changes it."""

    name: str
    model: Model
    data: Any
    """Where prompts and demonstrations come from: `load(tokenizer)` gives a Dataset;
    `missing(...)`, where it has one, says which settings are still to be given."""
    tokenizer: Any = field(default_factory=ModelTokenizer)
    sft: SupervisedStage | None = None
    """A supervised stage in front; none goes straight to what follows."""
    offline: OfflineStage | None = None
    """Training on the data's own pairs or labelled completions, in place of a recipe;
    none for none."""
    prompts: PromptStage | None = None
    """Prompts that the model writes from the data's: `jaxloop prompts`, or in front of
    the recipe, which is then trained on them; none trains on the data's own."""
    recipe: Recipe | None = None
    """The self-improvement method; none stops after the supervised stage."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0
    """Same seed, same bits."""
    out: str = ""
    """The folder of the run; empty is `runs/NAME`."""
    max_skipped_in_row: int = 20
    """Updates in a row that may be skipped, not being finite, before the run stops."""
    tensorboard: bool = True
    hang_minutes: float = 60.0
    """Minutes without a sign of life after which the stacks of all threads are written
    to OUT/stacks; after twice as many the process ends with exit code 75. 0: never."""

    @property
    def folder(self) -> str:
        return self.out or f"runs/{self.name}"

    def validate(self) -> list[str]:
        """The contradictions that can be seen without a device or a checkpoint."""
        found = self._number_problems()
        found += self._model_problems() + self._recipe_problems()
        missing = getattr(self.data, "missing", None)
        if missing is not None:
            found += missing(
                train=self.recipe is not None or self.prompts is not None,
                test=self.evaluation.scorer is not None,
                demonstrations=self.sft is not None,
                **self._examples_wanted(),
            )
        return found

    def problems(self, shape: ModelShape | None, devices: int) -> list[str]:
        """Every contradiction, one sentence each; empty when the run can start.

        `shape`: the model's, where it is known already.
        """
        found = self.validate()
        if self._number_problems():
            return found
        try:
            mesh = self.mesh.resolve(devices)
        except ValueError as error:
            return [*found, str(error)]
        found += self._batch_problems(mesh)
        if shape is not None:
            found += self._shape_problems(mesh, shape)
        return found

    def _number_problems(self) -> list[str]:
        """Counts that must be at least 1."""
        counts = [
            ("checkpoint.every", self.checkpoint.every),
            ("checkpoint.keep", self.checkpoint.keep),
            ("max_skipped_in_row", self.max_skipped_in_row),
        ]
        schedule = self.recipe.schedule if self.recipe is not None else None
        stages = (
            ("sft", self.sft),
            ("offline", self.offline),
            ("recipe.schedule", schedule),
        )
        parts = ("batch_size", "accumulation", "row_tokens", "rounds", "updates")
        for name, stage in stages:
            for part in parts:
                if hasattr(stage, part):
                    counts.append((f"{name}.{part}", getattr(stage, part)))
        if isinstance(schedule, Online):
            counts.append(("recipe.schedule.prompts", schedule.prompts))
            counts.append(("recipe.schedule.steps", schedule.steps))
        found = [f"{name} = {n} must be at least 1" for name, n in counts if n < 1]
        if isinstance(schedule, Rounds) and schedule.disjoint and not schedule.prompts:
            found.append("recipe.schedule.disjoint wants recipe.schedule.prompts")
        if self.checkpoint.best and self.evaluation.scorer is None:
            found.append(
                f"checkpoint.best = {self.checkpoint.best} is measured on held-out "
                "prompts, but the config has no evaluation.scorer"
            )
        return found

    def _model_problems(self) -> list[str]:
        found = []
        if bool(self.model.path) == (self.model.shape is not None):
            found.append(
                "model: give either model.path=DIR (a Hugging Face directory or hub "
                "id) or a shape in the config file, not both and not neither"
            )
        stages = self.sft or self.offline or self.prompts or self.recipe
        if not (stages or self.evaluation.scorer):
            found.append(
                "nothing to do: the config has neither `sft` nor `offline` nor "
                "`prompts` nor `recipe` nor an `evaluation.scorer`"
            )
        if self.offline is not None and self.prompts is not None:
            found.append(
                "`prompts` are written for a recipe, but the `offline` stage trains "
                "on the data's own examples: leave one of them out"
            )
        if self.offline is not None:
            found += self._offline_problems(self.offline)
        if self.offline is None and self.recipe is None:
            found += first_problems(self.evaluation)
        for name, optimizer in self.optimizers():
            if self.model.param_dtype == "float32" and optimizer.master_weights:
                found.append(
                    f"{name}.master_weights keeps float32 weights beside bfloat16 "
                    "ones, but model.param_dtype is float32 already"
                )
        return found

    def _examples_wanted(self) -> dict[str, str]:
        kind = self.offline.objective.trains_on if self.offline else None
        return {"examples": kind} if kind in ("pairs", "labelled") else {}

    def _offline_problems(self, stage: OfflineStage) -> list[str]:
        found = []
        if self.recipe is not None:
            found.append(
                "the config has both `offline` and `recipe`: run one after the other, "
                "the second from `jaxloop convert` of the first"
            )
        if stage.objective.trains_on not in ("pairs", "labelled"):
            found.append(
                "offline.objective must train on pairs or labelled completions"
            )
        if "previous" in stage.objective.needs:
            found.append(
                "offline.objective looks at two references, of which the stage has one"
            )
        return found + _contrast_problems("offline", stage)

    def scorers(self) -> list[tuple[str, Any]]:
        """What scores in this run, of all rounds, and the name of its setting."""
        found = [("recipe.scorer", each.scorer) for each in self._versions().values()]
        if self.evaluation.scorer is not None:
            found.append(("evaluation.scorer", self.evaluation.scorer))
        return found

    def optimizers(self):
        if self.sft is not None:
            yield "sft.optimizer", self.sft.optimizer
        if self.offline is not None:
            yield "offline.optimizer", self.offline.optimizer
        if self.recipe is not None:
            yield "recipe.optimizer", self.recipe.optimizer

    def _recipe_problems(self) -> list[str]:
        if self.recipe is None:
            return []
        if self.recipe.changes and not isinstance(self.recipe.schedule, Rounds):
            return ["recipe.changes go by rounds: they want the Rounds schedule"]
        found = self._problems_of(self.recipe)
        try:
            versions = self.recipe.versions()
        except ValueError as error:
            return [*found, f"recipe.changes: {error}"]
        for first, recipe in list(versions.items())[1:]:
            later = self._problems_of(recipe)
            new = [problem for problem in later if problem not in found]
            found += [f"recipe.changes, from round {first} on: {p}" for p in new]
        return found

    def _versions(self) -> dict[int, Recipe]:
        """The recipes of the run by the round from which each holds; none as long as
        the changes do not fit the recipe."""
        try:
            return {} if self.recipe is None else self.recipe.versions()
        except ValueError:
            return {}

    def _problems_of(self, recipe: Recipe) -> list[str]:
        """Contradictions of the recipe of some round."""
        found = kind_problems(recipe) + pair_problems(recipe)
        needs = recipe.objective.needs
        if ("teacher" in needs) != (recipe.teacher is not None):
            found.append(
                "recipe.teacher belongs to an objective that follows a teacher (such "
                "as Distill), and such an objective wants one"
            )
        found += _contrast_problems("recipe", recipe)
        rounds = recipe.schedule if isinstance(recipe.schedule, Rounds) else None
        if "previous" in needs and (rounds is None or rounds.reference != "seed"):
            found.append(
                "an objective of two references wants the Rounds schedule with "
                "recipe.schedule.reference=seed: the other one is the round's first "
                "weights"
            )
        if self.model.shape is not None and self.sft is None:
            found.append(
                "a new, random model has nothing to improve: add an `sft` stage"
            )
        return found

    def _batch_problems(self, mesh: MeshShape) -> list[str]:
        """What does not divide: the batch, by accumulation and by the mesh."""
        parts, found = mesh.data * mesh.fsdp, []
        for name, size, accumulation in dict.fromkeys(self._batches()):
            if size % accumulation:
                nearest = max(size // accumulation, 1) * accumulation
                found.append(
                    f"{name} = {size} is not a multiple of accumulation = "
                    f"{accumulation}; nearest: {nearest}"
                )
            elif size // accumulation % parts:
                whole = accumulation * parts
                below, above = size // whole * whole, -(-size // whole) * whole
                found.append(
                    f"{name} = {size} in {accumulation} parts cannot be cut over "
                    f"data*fsdp = {parts} devices; nearest: "
                    + " or ".join(str(n) for n in sorted({below, above} - {0}))
                )
        return found

    def _batches(self):
        if self.sft is not None:
            yield "sft.batch_size", self.sft.batch_size, self.sft.accumulation
        if self.offline is not None:
            stage = self.offline
            yield "offline.batch_size", stage.batch_size, stage.accumulation
        if self.evaluation.scorer is not None:
            yield "evaluation.sampling.rows", self.evaluation.sampling.rows, 1
        for path, scorer in self.scorers():
            for name, rows in decoder_rows(scorer, path):
                yield name, rows, 1
        if self.prompts is not None:
            yield "prompts.maker.sampling.rows", self.prompts.maker.sampling.rows, 1
            if self.prompts.sampling is not None:
                yield "prompts.sampling.rows", self.prompts.sampling.rows, 1
        if self.recipe is None:
            return
        for recipe in self._versions().values():
            yield "recipe.sampling.rows", recipe.sampling.rows, 1
            if recipe.extra is not None:
                yield "recipe.extra.rows", recipe.extra.rows, 1
        recipe, schedule = self.recipe, self.recipe.schedule
        if isinstance(schedule, Rounds):
            name = "recipe.schedule.batch_size"
            yield name, schedule.batch_size, schedule.accumulation
        else:
            name = "recipe.schedule.prompts * recipe.sampling.n"
            rows = schedule.prompts * recipe.sampling.n
            if recipe.objective.trains_on == "pairs":
                pairs = getattr(recipe.selector, "pairs", 1)
                name, rows = "recipe.schedule.prompts * pairs", schedule.prompts * pairs
            yield name, rows, schedule.accumulation

    def _shape_problems(self, mesh: MeshShape, shape: ModelShape) -> list[str]:
        found = divisibility_problems(mesh, cut_sizes(shape))
        if shape.heads % shape.kv_heads:
            found.append(
                f"heads = {shape.heads} is not a multiple of "
                f"kv_heads = {shape.kv_heads}"
            )
        if shape.mta is not None:
            found += shape.mta.problems(shape.heads, shape.layers)
        stages = [("sft", self.sft), ("offline", self.offline)]
        stages += [("recipe", each) for each in self._versions().values()]
        headless = {
            f"{name}.objective reads a scalar head: set model.outputs=1"
            for name, stage in stages
            if stage and "head" in stage.objective.needs and not shape.outputs
        }
        return [*found, *sorted(headless)]


def _contrast_problems(name: str, stage: Recipe | OfflineStage) -> list[str]:
    if ("token_reward" in stage.objective.needs) == (stage.contrast is not None):
        return []
    return [
        f"{name}.contrast belongs to an objective with rewards by token "
        "(Pairwise(token_regulariser=...)), and such an objective wants one"
    ]
