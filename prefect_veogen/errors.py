"""Everything that can go wrong, grouped by what the caller can do about it.

VeogenError
├── TryAgainLater              transient: repeat the same call; what is bought stays, and is not bought again
│   ├── ServiceUnavailable     the service or the network did not respond
│   ├── UnexpectedAnswer       the response can't be parsed, or is a redirect
│   ├── NotSent                the request surely did not reach the service
│   ├── RateLimited            the service kept responding "too many requests"
│   ├── DownloadBroken         the media host broke off; the next try resumes or starts afresh
│   └── StoreUnavailable       the bucket or directory could not be reached
├── ChangeTheRequest           the request as it stands will never be accepted
│   ├── InvalidRequest         a field is wrong: see .problems
│   ├── InvalidManifest        rows of a campaign are wrong: see .problems
│   ├── ModelNotFound          the catalogue does not list the model
│   └── InputUnavailable       an input can't be read any more, or can't be offered to the service
├── ChangeTheSetup             the request is fine, its surroundings are not
│   ├── ConfigurationError     a setting or an argument is missing or not valid
│   ├── AuthenticationError    the token was refused
│   ├── InsufficientBalance    the account can't pay
│   ├── BudgetExceeded         the purchase would break a cap
│   ├── StoreRefused           the bucket or directory refuses access: permission, credentials, name, region
│   └── UnsafeStore            the store can't guard money (no conditional writes, no locks)
├── GenerationFailed           it ran and failed; not charged; running again may buy again
│   └── ContentRejected        the service's text mentions moderation
├── StillRunning               paid for and running: the same call, made again, re-attaches
└── PersonNeeded               it is about money, and needs manual review unless `next_step` says otherwise
    ├── UnknownSubmission      in doubt: the purchase may or may not have happened; mostly ends by itself in time
    ├── MediaRejected          what was served is not the media that was paid for
    ├── OutputMissing          completed, but without anything to download
    └── UnreadableReceipt      a record of the ledger is damaged, or newer than this version

The tasks retry what is `retryable`: all of `TryAgainLater`, whose causes are transient, and `MediaRejected`: another
download is free (unless a setting rejects it). All else would end the same way, or might buy again: the caller decides.

`prefect-veogen explain NAME` prints what each means, whether anything was bought and what to do: docs/errors.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prefect_veogen.masking import shortened, value_with_masked_links

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal


_MAX_PROBLEMS_SHOWN = 50
_NEXT_STEP = "\nWhat to do: "
_MORE = re.compile(r" \(more: prefect-veogen explain \w+\)\Z")


def _rebuild(cls: type[VeogenError], args: tuple[Any, ...], state: dict[str, Any]) -> VeogenError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class VeogenError(Exception):
    """Any failure of this package; catch it to catch them all.

    `http_status` and `service_text` come from the service's response, if there was one; `next_step` is what to do now.
    `retryable` says whether the tasks repeat what raised it: that is safe, and may help.
    """

    default_next_step: ClassVar[str] = ""
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        http_status: int | None = None,
        service_text: str | None = None,
    ) -> None:
        # Prefect stores only the class and the text of a failed run's error, and recreates it from these.
        message, _, stored_step = message.partition(_NEXT_STEP)
        stored_step = _MORE.sub("", stored_step)
        super().__init__(message)
        self.message = message
        self.next_step = (stored_step or self.default_next_step) if next_step is None else next_step
        self.http_status = http_status
        self.service_text = service_text

    def __str__(self) -> str:
        text = self.message
        reason = self.service_text if self.service_text and self.service_text not in text else None
        status = None if self.http_status is None else f"HTTP {self.http_status}"
        if response := ": ".join(part for part in (status, reason) if part):
            text += f" ({response})"
        more = f"(more: prefect-veogen explain {type(self).__name__})"
        return f"{text}{_NEXT_STEP}{self.next_step} {more}" if self.next_step else text

    # Prefect ships exceptions between processes, and Exception's own pickling forgets keyword arguments.
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class TryAgainLater(VeogenError):
    """A transient failure: repeat the same call. What is bought stays in the ledger, and is not bought again."""

    default_next_step = "Run the same thing again in a moment: what is bought already is not bought again."
    retryable = True


class ServiceUnavailable(TryAgainLater):
    """The service, the Prefect server or the network did not respond, or responded that it is in trouble."""


class UnexpectedAnswer(TryAgainLater):
    """The service's response can't be parsed (HTML, a missing field, a redirect): mostly a proxy's page."""

    default_next_step = "Check VEOGEN_BASE_URL, then run it again: what is bought already is not bought again."


class NotSent(TryAgainLater):
    """The request surely did not reach the service, so repeating it is safe."""

    default_next_step = "Nothing was sent. Check the network and VEOGEN_BASE_URL, then run it again."


class RateLimited(TryAgainLater):
    """The service kept responding "too many requests"; `retry_after_seconds` is its last `Retry-After`."""

    default_next_step = "A 429 buys nothing. Lower VEOGEN_REQUESTS_PER_MINUTE, or run `prefect-veogen setup`."

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_seconds = retry_after_seconds


class DownloadBroken(TryAgainLater):
    """The media host broke off or sent something else; the generation is paid for and stays downloadable."""

    default_next_step = "Run it again: the download resumes with a fresh link, and nothing is bought again."


class StoreUnavailable(TryAgainLater):
    """The bucket or directory could not be read or written; before a purchase or after it."""

    default_next_step = "Check VEOGEN_STORE, its credentials and its free space, then run it again."


class ChangeTheRequest(VeogenError):
    """The request as it stands will never be accepted; it bought nothing."""

    default_next_step = "Correct the request and run it again: one that is refused buys nothing."


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request: the field, its value, what is allowed and the nearest of that."""

    field: str
    value: Any
    message: str
    allowed: tuple[Any, ...] | None = None
    nearest: Any = None

    def __post_init__(self) -> None:
        # Errors are logged and stored, and a link's signature is a secret while it is valid.
        object.__setattr__(self, "value", value_with_masked_links(self.value))

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}"
        if self.value is not None:
            text += f" (got {shortened(self.value)})"
        if self.allowed is not None:
            text += f"; allowed: {', '.join(str(value) for value in self.allowed) or 'nothing'}"
        if self.nearest is not None:
            text += f"; nearest: {self.nearest}"
        return text


class InvalidRequest(ChangeTheRequest, ValueError):
    """Fields of the request are wrong; `problems` holds all that were found, not only the first."""

    def __init__(self, problems: Sequence[Problem] | str, **facts: Any) -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        text = "\n".join(["The request is not valid:", *(f"  - {problem}" for problem in self.problems)])
        super().__init__(problems if isinstance(problems, str) else text, **facts)  # Prefect stores the text alone


class InvalidManifest(ChangeTheRequest):
    """Rows of a campaign's manifest are wrong; `problems` holds all of them, each with its row. Nothing was bought."""

    default_next_step = "Nothing was bought. Correct the rows and run it again."

    def __init__(self, problems: Sequence[str], **facts: Any) -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        lines = [f"  - {problem}" for problem in self.problems[:_MAX_PROBLEMS_SHOWN]]
        if more := len(self.problems) - len(lines):
            lines.append(f"  … and {more} more")
        text = "\n".join([f"The manifest has {len(self.problems)} problem(s):", *lines])
        super().__init__(problems if isinstance(problems, str) else text, **facts)  # Prefect stores the text alone


class ModelNotFound(ChangeTheRequest):
    """The service's catalogue does not list this model."""

    default_next_step = "Nothing was bought. `prefect-veogen models` lists what the service offers."


class InputUnavailable(ChangeTheRequest):
    """An asset, object or file used as an input can't be read any more, or be offered to the service under any link."""


class ChangeTheSetup(VeogenError):
    """The request is fine, its surroundings are not: the account, a setting, a cap or the store."""

    default_next_step = "Correct what is said above, then run it again: what is bought already is not bought again."


class ConfigurationError(ChangeTheSetup):
    """A setting or an argument is missing or not valid."""


class AuthenticationError(ChangeTheSetup):
    """The service refused the token."""

    default_next_step = (
        "Create a token at the service (Settings → API Tokens), and set VEOGEN_API_TOKEN or save it in the block."
    )


class InsufficientBalance(ChangeTheSetup):
    """The account can't pay; `required_usd` and `balance_usd` are the service's figures where it gave them."""

    default_next_step = "Nothing was bought. Top up the account (https://veogen.studio/billing), then run it again."

    def __init__(
        self, message: str, *, required_usd: Decimal | None = None, balance_usd: Decimal | None = None, **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.required_usd = required_usd
        self.balance_usd = balance_usd


class BudgetExceeded(ChangeTheSetup):
    """The purchase would break a cap, that of `budget`; it was not made."""

    default_next_step = "Nothing was bought. Raise the cap, wait for the next period, or ask for less."

    def __init__(
        self,
        message: str,
        *,
        wanted_usd: Decimal | None = None,
        left_usd: Decimal | None = None,
        cap_usd: Decimal | None = None,
        budget: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.wanted_usd = wanted_usd
        self.left_usd = left_usd
        self.cap_usd = cap_usd
        self.budget = budget

    @classmethod
    def without_a_price(cls, models: str) -> BudgetExceeded:
        """Return the error for what can't be kept under a cap, because the service states no price for it."""
        return cls(
            f"The service states no price for {models}, so that it can't be kept under a cap",
            next_step="Nothing was bought. Choose another model, or run this one without any cap.",
        )


class StoreRefused(ChangeTheSetup):
    """The bucket or directory refuses access until its permissions, the credentials, its name or its region change.

    Access is proven before each purchase. A permission that is withdrawn later may interrupt what is paid for already;
    the next run resumes that, once the permission is restored.
    """

    default_next_step = "Correct what is said above, then run it again: nothing was lost."


STORE_TROUBLE = (StoreUnavailable, StoreRefused)
"""What a store that passed its check may raise later: once money is spent, neither may end the call at once."""


class UnsafeStore(ChangeTheSetup):
    """The store can't keep two workers from both buying: refused before anything is bought."""

    default_next_step = "Use a store which honours If-None-Match and If-Match on PUT (AWS S3 does), or a directory."


class _AboutAGeneration(VeogenError):
    def __init__(self, message: str, *, generation_id: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.generation_id = generation_id


class GenerationFailed(_AboutAGeneration):
    """The generation ran and failed. Failed generations are not charged (documented at /quickstart)."""

    default_next_step = "Nothing was charged. Running it again buys a new attempt; a changed prompt may fare better."


class ContentRejected(GenerationFailed):
    """The generation failed, and the service's text mentions moderation."""

    default_next_step = "Nothing was charged. Change the prompt or the inputs: the same request will be refused again."


class StillRunning(_AboutAGeneration):
    """The wait timed out, the generation goes on: it is paid for, and the same call made again re-attaches to it."""

    default_next_step = "Run it again: it re-attaches to this generation and buys nothing."


class PersonNeeded(_AboutAGeneration):
    """Money is involved, and it needs manual review unless `next_step` says otherwise."""


class UnknownSubmission(PersonNeeded):
    """The purchase may or may not have happened; `receipt` names the ledger's record of it.

    Running again after `doubt_until` (UTC) resolves it automatically; if that is `None`, it needs manual review.
    """

    def __init__(
        self,
        message: str,
        *,
        receipt: str | None = None,
        candidates: Sequence[str] = (),
        doubt_until: datetime | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.receipt = receipt
        self.candidates = tuple(candidates)
        self.doubt_until = doubt_until


class MediaRejected(PersonNeeded):
    """What was served is not the media that was paid for.

    `kept_at` is where the served bytes are quarantined, if any were read and could be stored. `setting` names the
    variable that rejects them: until that is changed, a repetition ends the same way, so that it is not retryable.
    """

    default_next_step = "Run it again for a fresh download: nothing is bought again."
    retryable = True

    def __init__(self, message: str, *, kept_at: str | None = None, setting: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.kept_at = kept_at
        self.setting = setting
        self.retryable = setting is None


class OutputMissing(PersonNeeded):
    """The generation is completed and paid for, but the service gives no link to download."""

    default_next_step = "Run it again later; if that does not help, show the generation's id to the service's support."


class UnreadableReceipt(PersonNeeded):
    """A receipt is damaged or was written by a newer version: buying on would risk paying twice."""

    default_next_step = "Nothing is bought until it can be read: update prefect-veogen, or restore it if it was edited."
