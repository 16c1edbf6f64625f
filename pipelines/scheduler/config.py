"""What the scheduler may use."""

from dataclasses import dataclass

from quire.pipelines.kv_cache.page_group import PageGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one replica.

    Raises:
        ValueError: a limit is below 1, there are no pages, or a step cannot hold one page of a
            prompt.
    """

    page_groups: tuple[PageGroup, ...]
    page_size: int
    """Tokens in one page; prompts are cut at its multiples."""
    max_batch_size: int
    """Contexts in one step."""
    max_batch_input_tokens: int
    """Tokens in one step, prefill and decode together."""
    max_length: int
    """Prompt plus output tokens of one context."""
    enable_prefix_caching: bool = True
    itl_target: float | None = None
    """Seconds that a step with decodes is to take at most, by cutting prompts; None: any."""
    itl_stretch: float = 0.0
    """It may take as many steps of decodes alone if that is longer."""

    def __post_init__(self) -> None:
        if not self.page_groups:
            raise ValueError("page_groups must not be empty")
        for name in ("page_size", "max_batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_batch_input_tokens < self.page_size:
            raise ValueError(
                f"max_batch_input_tokens must be at least page_size ({self.page_size}), "
                f"not {self.max_batch_input_tokens}"
            )

    @property
    def num_pages(self) -> int:
        """Of all groups."""
        return sum(group.num_pages for group in self.page_groups)

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the group with the most pages holds."""
        return self.page_size * max(group.num_pages for group in self.page_groups)

    @property
    def max_running(self) -> int:
        """Contexts that may hold pages at once: `max_batch_size`, less in a small step.

        All decode rows run in every step, and where one context still prefills, the others leave
        it at least one page of the step's tokens. So neither kind can starve the other.
        """
        return min(self.max_batch_size, self.max_batch_input_tokens - self.page_size + 1)
