"""Times Tunix on the shapes of workload.py; prints one JSON line.

Run by benchmarks/run.py --peer tunix in an environment of its own (see peers.py).
"""

# pyright: reportMissingImports=false

import argparse
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload as w
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput

NEVER = w.VOCAB  # an end-of-sequence id that no model can produce


class Numbers:
    """A tokenizer of numbers: "12 7" is the tokens 12 and 7."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self):
        return None

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return 0


class Batches:
    """A data set made by calling `make`: Tunix wants something that it can iterate."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def make_model(mesh) -> Qwen2:
    config = ModelConfig(
        num_layers=w.LAYERS,
        vocab_size=w.VOCAB,
        embed_dim=w.WIDTH,
        hidden_dim=w.FFN,
        num_heads=w.HEADS,
        head_dim=w.HEAD_DIM,
        num_kv_heads=w.KV_HEADS,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    with jax.set_mesh(mesh):
        return Qwen2(config, rngs=nnx.Rngs(0))


def texts(rows: int, length: int, seed: int) -> list[str]:
    return [Numbers().decode(ids) for ids in w.token_ids(rows, length, seed)]


def time_sampling(mesh) -> list[float]:
    cache = CacheConfig(
        cache_size=w.SAMPLE_PROMPT_TOKENS + w.SAMPLE_NEW_TOKENS,
        num_layers=w.LAYERS,
        num_kv_heads=w.KV_HEADS,
        head_dim=w.HEAD_DIM,
    )
    sampler = Sampler(make_model(mesh), Numbers(), cache)
    prompts = texts(w.SAMPLE_PROMPTS, w.SAMPLE_PROMPT_TOKENS, 0)

    def run():
        out = sampler(
            prompts,
            max_generation_steps=w.SAMPLE_NEW_TOKENS,
            max_prompt_length=w.SAMPLE_PROMPT_TOKENS,
            temperature=1.0,
            top_p=1.0,
            seed=0,
        )
        assert all(len(tokens) == w.SAMPLE_NEW_TOKENS for tokens in out.tokens)

    with jax.set_mesh(mesh):
        return w.seconds(run)


def time_dpo(mesh) -> list[float]:
    stamps = w.Stamps()

    def batches():
        for step in range(w.WARM_UP + w.TIMED + 3):
            stamps.stamp()
            rows, new = w.DPO_PAIRS, w.DPO_COMPLETION_TOKENS
            prompt = np.array(w.token_ids(rows, w.DPO_PROMPT_TOKENS, step))
            chosen = np.array(w.token_ids(rows, new, 100 + step))
            rejected = np.array(w.token_ids(rows, new, 200 + step))
            yield TrainingInput(
                prompt_ids=prompt,
                prompt_mask=np.ones_like(prompt),
                chosen_ids=chosen,
                chosen_mask=np.ones_like(chosen),
                rejected_ids=rejected,
                rejected_mask=np.ones_like(rejected),
            )

    trainer = DPOTrainer(
        model=make_model(mesh),
        ref_model=make_model(mesh),
        optimizer=optax.adamw(1e-6),
        training_config=DPOTrainingConfig(
            eval_every_n_steps=10**6,
            max_steps=10**6,
            max_inflight_computations=1,
            beta=0.1,
        ),
    )
    with jax.set_mesh(mesh):
        trainer.train(Batches(batches))
    return stamps.seconds()


def time_grpo(mesh) -> list[float]:
    stamps = w.Stamps()

    def batches():
        for step in range(w.WARM_UP + w.TIMED + 3):
            stamps.stamp()
            prompts = texts(w.GRPO_PROMPTS, w.GRPO_PROMPT_TOKENS, step)
            yield {"prompts": np.array(prompts)}

    def reward(prompts, completions, **_):
        assert len(completions) == w.GRPO_PROMPTS * w.GRPO_SAMPLES
        assert all(len(text.split()) == w.GRPO_NEW_TOKENS for text in completions)
        return [float(len(text) % 7) for text in completions]

    cluster = RLCluster(
        actor=make_model(mesh),
        reference=None,
        tokenizer=Numbers(),
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh, Role.REFERENCE: mesh, Role.ROLLOUT: mesh},
            rollout_engine="vanilla",
            training_config=RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-6),
                eval_every_n_steps=10**6,
                max_steps=10**6,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=w.GRPO_NEW_TOKENS,
                max_prompt_length=w.GRPO_PROMPT_TOKENS,
                kv_cache_size=w.GRPO_PROMPT_TOKENS + w.GRPO_NEW_TOKENS,
                temperature=1.0,
            ),
        ),
    )
    learner = GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=w.GRPO_SAMPLES, beta=0.0),
        reward_fns=reward,
    )
    learner.train(Batches(batches))  # enters the meshes of its roles itself
    return stamps.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="sampling,dpo,grpo")
    wanted = parser.parse_args().only.split(",")
    w.use_two_cores()
    jax.config.update("jax_platforms", "cpu")
    auto = (jax.sharding.AxisType.Auto,) * 2
    devices = jax.devices()[:1]
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=auto, devices=devices)
    timers = {"sampling": time_sampling, "dpo": time_dpo, "grpo": time_grpo}
    names = ("google-tunix", "jax", "flax")
    found = {name: timers[name](mesh) for name in wanted}
    w.report("tunix", {name: version(name) for name in names}, **found)


if __name__ == "__main__":
    main()
