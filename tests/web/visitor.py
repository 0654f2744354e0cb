"""Somebody at the page, in a real browser: what they do, what they see, and what the browser complains of."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, expect

# Everything is scripted and quick; it is the machine that may be busy.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

READY = ".card[data-state=ready]"


@dataclass
class Visitor:
    page: Page
    url: str
    # What the console said; patterns of what is no wonder where a test breaks something.
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    other_hosts: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme != "blob" and address.netloc != urlsplit(self.url).netloc:
            self.other_hosts.append(request.url)

    @property
    def unexpected(self) -> list[str]:
        return [one for one in self.complaints if not any(re.search(known, one) for known in self.expected)]

    async def arrive(self) -> None:
        await self.page.goto(self.url)
        try:
            await expect(self.page.locator("#models")).to_contain_text("Models: scripted")
        except AssertionError as error:
            error.add_note(f"the console said: {self.complaints}")
            raise

    async def begin(self, prompt: str = "a red house", *, count: int = 3, seed: int = 100) -> None:
        await self.page.get_by_label("Sketches", exact=True).fill(str(count))
        await self.page.get_by_label("Seed", exact=True).fill(str(seed))
        await self.page.get_by_label("What should the picture show?").fill(prompt)
        await self.page.get_by_role("button", name="Sketch it").click()

    @property
    def sketches(self) -> Locator:
        return self.page.locator("#panel-generate .card")

    @property
    def variations(self) -> Locator:
        return self.page.locator("#panel-refine .card")

    @property
    def easel(self) -> Locator:
        return self.page.locator("#panel-easel")

    @property
    def facts(self) -> Locator:
        return self.page.locator("#run-facts")

    @property
    def trouble(self) -> Locator:
        return self.page.get_by_role("alert")

    def button(self, name: str | re.Pattern[str]) -> Locator:
        return self.page.get_by_role("button", name=name)

    async def sees_sketches(self, count: int) -> None:
        await expect(self.page.locator(f"#panel-generate {READY}")).to_have_count(count)

    async def sees_variations(self, count: int) -> None:
        await expect(self.page.locator(f"#panel-refine {READY}")).to_have_count(count)

    async def refine(self, place: int, *, count: int = 6) -> None:
        await self.sketches.nth(place).get_by_role("button").click()
        await self.sees_variations(count)

    async def choose(self, place: int) -> None:
        await self.variations.nth(place).get_by_role("button").click()
        await expect(self.easel.locator(".count")).to_contain_text("variation")

    async def enlarge(self) -> None:
        await self.button("Enlarge ×4").click()
        await expect(self.easel.locator("figcaption")).to_contain_text("128 × 128")


async def open_page(browser: Browser, url: str, **more) -> Visitor:
    """`more` as Playwright's new_context has it."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **more})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    visitor = Visitor(page, url)
    visitor.listen()
    return visitor
