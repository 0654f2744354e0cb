"""Somebody at the page, in a real browser: what they do, what they see, and what the browser complains of."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, expect

# Everything is scripted and quick; it is the machine that may be busy.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

READY = ".card[data-state=ready]"
PROMPT = "What should the picture show?"


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
        if address.scheme not in ("blob", "data") and address.netloc != urlsplit(self.url).netloc:
            self.other_hosts.append(request.url)

    @property
    def unexpected(self) -> list[str]:
        return [one for one in self.complaints if not any(re.search(known, one) for known in self.expected)]

    async def arrive(self, path: str = "") -> None:
        await self.page.goto(self.url + path)
        try:
            await expect(self.page.locator("#server-state")).to_contain_text("models: scripted")
        except AssertionError as error:
            error.add_note(f"the console said: {self.complaints}")
            raise

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_label(PROMPT)

    async def set(self, **values: object) -> None:
        """Settings by their ids, such as `generate_count=3`; the panel is open then and closed afterwards."""
        await self.button("Settings").click()
        for name, value in values.items():
            one = self.page.locator("#" + name.replace("_", "-", 1))
            await one.evaluate("one => { const more = one.closest('details'); if (more) more.open = true; }")
            await one.fill(str(value))
            await one.blur()
        await self.button("Settings").click()

    async def begin(self, prompt: str = "a red house", *, count: int = 3, seed: int = 100) -> None:
        await self.set(generate_count=count)
        await self.page.get_by_label("Seed", exact=True).fill(str(seed))
        await self.prompt.fill(prompt)
        await self.button("Make pictures").click()

    def cards(self, stage: str) -> Locator:
        return self.page.locator(f".group[data-stage={stage}] .card")

    @property
    def sketches(self) -> Locator:
        return self.cards("generate")

    @property
    def variations(self) -> Locator:
        return self.cards("refine")

    @property
    def detail(self) -> Locator:
        return self.page.locator("#detail")

    @property
    def facts(self) -> Locator:
        return self.page.locator("#run-facts")

    @property
    def errors(self) -> Locator:
        return self.page.get_by_role("alert")

    @property
    def runs(self) -> Locator:
        return self.page.locator(".run-item")

    def button(self, name: str | re.Pattern[str]) -> Locator:
        return self.page.get_by_role("button", name=re.compile(rf"^{name}") if name == "Settings" else name)

    async def sees(self, stage: str, count: int) -> None:
        await expect(self.page.locator(f".group[data-stage={stage}] {READY}")).to_have_count(count)

    async def sees_sketches(self, count: int) -> None:
        await self.sees("generate", count)

    async def pick(self, stage: str, place: int) -> None:
        """A click on a picture shows it large."""
        card = self.cards(stage).nth(place)
        name = await card.locator(".card-name").inner_text()
        await card.locator(".face").click()
        await expect(self.detail.get_by_role("heading", name=name, exact=True)).to_be_visible()

    async def pick_best(self, stage: str) -> None:
        """The best match, or the first picture where none is."""
        best = self.page.locator(f".group[data-stage={stage}] .best")
        card = best if await best.count() else self.cards(stage).first
        await card.locator(".face").click()

    async def refine(self, place: int, *, count: int = 4) -> None:
        """Of a sketch; `count` are there afterwards."""
        await self.pick("generate", place)
        await self.act("Refine")
        await self.sees("refine", count)

    async def act(self, name: str) -> None:
        await self.detail.get_by_role("button", name=name, exact=True).click()

    async def upscale(self) -> None:
        await self.act("Upscale ×4")
        await expect(self.detail.locator(".facts")).to_contain_text("128 × 128")

    async def shows_runs(self) -> None:
        await self.page.get_by_role("link", name="Runs").click()
        await expect(self.page.get_by_role("heading", name="Runs")).to_be_visible()


async def open_page(browser: Browser, url: str, **more) -> Visitor:
    """`more` as Playwright's new_context has it."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **more})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    visitor = Visitor(page, url)
    visitor.listen()
    return visitor
