"""Debian's Chromium, driven by selenium, as one who reads a page uses it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

_SIZE = (1200, 900)


def missing() -> str:
    """What of it isn't there; empty where all is."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    lacking += ["selenium"] * (importlib.util.find_spec("selenium") is None)
    return f"not installed: {', '.join(lacking)} (make test-browser)" if lacking else ""


class Browser:
    """A Chromium without a window, which finds no host; a context. `dark`: whose user prefers dark pages."""

    def __init__(self, *, dark: bool = False) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--disable-lcd-text",
            "--force-device-scale-factor=1",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--window-size={_SIZE[0]},{_SIZE[1]}",
        ):
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options, service)
        self._set("Emulation.setEmulatedMedia", features=[_feature(dark)])
        self.page: Path | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def open(self, page: Path) -> None:
        """Show a page, and wait until its script has run."""
        self.page = page
        self.driver.get_log("performance")
        self.driver.get(page.as_uri())

    def check(self) -> None:
        """Nothing was said on the console since the page was opened, and the page asked for itself only."""
        assert self.page is not None
        assert self.driver.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert asked == [self.page.as_uri()]

    def section(self, title: str) -> Section:
        """The section whose title begins so."""
        for found in self.driver.find_elements("tag name", "section"):
            heads = found.find_elements("tag name", "h2")
            if heads and heads[0].text.startswith(title):
                return Section(found)
        raise AssertionError(f"no section {title}; there are {self.titles}")

    @property
    def titles(self) -> list[str]:
        return [str(head.text) for head in self.driver.find_elements("tag name", "h2")]

    @property
    def text(self) -> str:
        return str(self.driver.find_element("tag name", "body").text)

    def picture(self, file: Path, *, height: int = _SIZE[1], at: Section | None = None) -> None:
        """What is seen of the page from its top, or from a section, in a window so high."""
        self._set(
            "Emulation.setDeviceMetricsOverride",
            width=_SIZE[0],
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.driver.execute_script("arguments[0].scrollIntoView()", at.element if at else self._body())
        self.driver.save_screenshot(str(file))
        self._set("Emulation.clearDeviceMetricsOverride")

    def _body(self) -> Any:
        return self.driver.find_element("tag name", "body")

    def _set(self, command: str, **values: Any) -> None:
        self.driver.execute_cdp_cmd(command, values)


class Section:
    """A section of the page, with a table or a drawing."""

    def __init__(self, element: Any) -> None:
        self.element = element

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table's rows that are shown, as they are read."""
        script = """return [...arguments[0].querySelectorAll("tbody tr")].map(
            (row) => [...row.children].map((cell) => cell.innerText))"""
        found: list[list[str]] = self.element.parent.execute_script(script, self.element)
        return found

    @property
    def facts(self) -> dict[str, str]:
        rows = [row.find_elements("xpath", "./*") for row in self.element.find_elements("tag name", "tr")]
        return {name.text: text.text for name, text in rows}

    def column(self, number: int) -> list[str]:
        return [row[number] for row in self.rows]

    def click(self, text: str) -> None:
        """The button with this text, as the head of a column is one."""
        buttons = self.element.find_elements("tag name", "button")
        next(each for each in buttons if each.text.strip(" ▲▼") == text).click()

    def type(self, text: str) -> None:
        """Into the field that searches, in place of what is there."""
        field = self.element.find_element("css selector", "input[type=search]")
        field.clear()
        if text:
            field.send_keys(text)
        else:
            self.element.parent.execute_script("arguments[0].dispatchEvent(new Event('input'))", field)

    def pick(self, value: str) -> None:
        """One of the values of a column that can be picked."""
        options = self.element.find_elements("tag name", "option")
        next(each for each in options if each.get_attribute("textContent") == value).click()

    @property
    def count(self) -> str:
        """What it says of how many rows it shows."""
        return str(self.element.find_element("tag name", "output").text)

    def is_drawn(self) -> bool:
        """Whether the canvas has anything on it."""
        script = """const c = arguments[0].querySelector("canvas");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return d.some((value) => value !== 0)"""
        return bool(self.element.parent.execute_script(script, self.element))

    def point(self, x: float, y: float) -> str:
        """What is told of a place on the canvas, as shares of its width and height."""
        from selenium.webdriver import ActionChains

        canvas = self.element.find_element("tag name", "canvas")
        self.element.parent.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        size = canvas.size
        shift = ((x - 0.5) * size["width"], (y - 0.5) * size["height"])
        ActionChains(self.element.parent).move_to_element_with_offset(canvas, *map(int, shift)).perform()
        return str(self.element.parent.find_element("id", "hint").text)


def _feature(dark: bool) -> dict[str, str]:
    return {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
