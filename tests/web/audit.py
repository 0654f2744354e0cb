"""What must hold of every view of the page: axe-core finds nothing wrong, and nothing leaves the screen."""

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

AXE = {"resultTypes": ["violations"]}
WIDTHS = [360, 768, 1280, 1920]
SCHEMES = ["light", "dark"]


async def audit(page: Page) -> list[str]:
    """What axe-core finds wrong, in lines."""
    # Playwright may do what the page's own policy forbids it: run a script that comes as a text.
    results = await Axe().run(page, options=AXE)
    return [
        f"{found['id']}: {node['html'][:160]}"
        for found in results.response["violations"]
        for node in found["nodes"]
    ]


async def overflow(page: Page) -> list[str]:
    """What makes the page wider than the screen; empty where nothing does."""
    return await page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.outerHTML.slice(0, 120))"""
    )
