"""How to sample, and the shapes that follow from it."""

from dataclasses import dataclass

SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Sampling:
    """What is drawn, and how much of it is decoded at once.

    Each draw is from the model's distribution at `temperature`, cut by top-k, then by
    top-p of what is left, then by min-p, and renormalised. For a given set of shapes
    (`rows`, `prefill_rows`, `chunk`, the prompt's bucket and shared head) a sample
    depends only on its prompt, its index, the parameters and the key.
    """

    n: int = 8
    """Samples of each prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 is off."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens with this share of the mass; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one; 0 is off."""
    max_new_tokens: int = 512
    """The longest completion, its end-of-sequence token included."""
    stop: tuple[str, ...] = ()
    """Texts after which a completion ends; it keeps them."""
    rows: int = 64
    """Completions decoded at once; the mesh's data x fsdp must divide it."""
    prefill_rows: int = 16
    """Prompts prefilled at once; rounded up so that the mesh divides it."""
    chunk: int = 8
    """Steps between two looks by the host, which ends rows and fills them again."""
    prompt_buckets: tuple[int, ...] = ()
    """Lengths to which prompts are padded; () is 16, 32, 64, ..."""

    def __post_init__(self):
        problems = self.problems()
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))

    def problems(self) -> list[str]:
        """What is out of range, one sentence each."""
        at_least = {"n": 1, "max_new_tokens": 1, "rows": 1, "prefill_rows": 1}
        at_least |= {"chunk": 1, "top_k": 0, "temperature": 0}
        found = [
            f"{name} = {getattr(self, name)} must be at least {least}"
            for name, least in at_least.items()
            if not getattr(self, name) >= least  # nan fails too
        ]
        if self.temperature == float("inf"):
            found.append("temperature = inf must be finite")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p = {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p = {self.min_p} must be between 0 and 1")
        if isinstance(self.stop, str) or "" in self.stop:
            found.append(f"stop = {self.stop!r} must be a tuple of texts, none empty")
        if any(bucket < 1 for bucket in self.prompt_buckets):
            found.append(f"prompt_buckets = {self.prompt_buckets} must be positive")
        return found

    def bucket(self, length: int) -> int:
        """The shape that a prompt of `length` tokens is padded to.

        ValueError where `prompt_buckets` is given and none is long enough.
        """
        if not self.prompt_buckets:
            return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
        fitting = [bucket for bucket in self.prompt_buckets if bucket >= length]
        if not fitting:
            raise ValueError(
                f"a prompt of {length} tokens is longer than every length in "
                f"sampling.prompt_buckets = {self.prompt_buckets}: add a longer one"
            )
        return min(fitting)

    def slots(self, bucket: int) -> int:
        """Cache slots of a row: the prompt's bucket and the longest completion."""
        return bucket + self.max_new_tokens

    def padded_prefill_rows(self, parts: int) -> int:
        """`prefill_rows`, rounded up to what a mesh of `parts` batch parts divides."""
        return -(-self.prefill_rows // parts) * parts
