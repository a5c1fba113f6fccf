"""Shares of a cache's budget: each tenant keeps its own, and may borrow what no other needs."""

from pagecache import _core
from pagecache._core import AddressSpace, Mutex, Segment
from pagecache.units import PAGE_SIZE, budget_pages

NR_TENANTS_MAX = 63


class Shares:
    """The tenants of one cache by name, with their shares of the budget.

    segment: whose frames are shared.
    """

    def __init__(self, segment: Segment):
        self._segment = segment
        self._lock = Mutex()
        self._numbers: dict[str, int] = {}
        self._parts: dict[str, int | str] = {}
        self._pages: dict[str, int] = {}

    def set(self, tenant: str, part: int | str) -> None:
        """Give a tenant a share: bytes, "64MiB", or "25%" of the budget; 0 leaves it nothing that is kept for it.

        Pages of its objects within the share are not evicted while those of others can be. It may use more than that as
        long as there is room; what it has borrowed goes first when others need it.
        Raises ValueError when the shares together are more than the budget, or for more than 63 tenants.
        """
        nr_pages = budget_pages(part, self._segment.nr_frames)
        if nr_pages < 0:
            raise ValueError(f"the share of {tenant!r} must not be negative: {part!r}")
        with self._lock.held():
            total = sum(self._pages.values()) - self._pages.get(tenant, 0) + nr_pages
            if total > self._segment.nr_frames:
                raise ValueError(
                    f"the shares would be {total * PAGE_SIZE} bytes together, with {part!r} for {tenant!r}, and the "
                    f"budget is {self._segment.nr_frames * PAGE_SIZE}: give less"
                )
            if tenant not in self._numbers and len(self._numbers) == NR_TENANTS_MAX:
                raise ValueError(f"a cache has {NR_TENANTS_MAX} tenants at most: {tenant!r} is one more")
            number = self._numbers.setdefault(tenant, len(self._numbers) + 1)
            self._parts[tenant], self._pages[tenant] = part, nr_pages
            _core.set_share(self._segment, number, nr_pages)

    def fit(self) -> None:
        """Fit the shares to a budget that has changed. Those that are so many bytes, and no longer fit into it together,
        become smaller in proportion until they do."""
        nr_frames = self._segment.nr_frames
        with self._lock.held():
            wanted = {tenant: budget_pages(part, nr_frames) for tenant, part in self._parts.items()}
            total = max(sum(wanted.values()), nr_frames)
            for tenant, nr_pages in wanted.items():
                self._pages[tenant] = nr_pages * nr_frames // total
                _core.set_share(self._segment, self._numbers[tenant], self._pages[tenant])

    def assign(self, mapping: AddressSpace, tenant: str | None) -> None:
        """Make an object a tenant's, with what it has cached; None: no tenant's. Raises ValueError for a tenant without a
        share."""
        if tenant is not None and tenant not in self._numbers:
            known = ", ".join(sorted(self._numbers)) or "there is none"
            raise ValueError(f"no share is set for tenant {tenant!r} ({known}): use cache.shares.set")
        _core.set_tenant(mapping, self._numbers[tenant] if tenant is not None else 0)

    def usage(self) -> dict[str, tuple[int, int]]:
        """Return share and cached bytes of each tenant, by name."""
        return {
            tenant: (self._pages[tenant] * PAGE_SIZE, _core.tenant_pages(self._segment, number) * PAGE_SIZE)
            for tenant, number in list(self._numbers.items())
        }
