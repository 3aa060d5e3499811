"""A page of ours in a real browser, at any width: what it says of itself."""

import html
import json
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SCRIPT = """<script>
const wrong = [];
addEventListener("error", e => wrong.push(String(e.message || e.target.outerHTML)), true);
addEventListener("securitypolicyviolation", e => wrong.push("policy: " + e.blockedURI));
addEventListener("load", async () => {
  for (const d of document.querySelectorAll("details")) d.open = true;
  const pictures = [...document.images];
  // not decode(): the browser's virtual time does not wait for it
  await Promise.all(pictures.map(i => { i.loading = "eager"; return i.complete || new Promise(d => { i.onload = i.onerror = d; }); }));
  const fits = [...document.querySelectorAll("td")].filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.textContent);
  parent.postMessage({wrong, fits, pictures: pictures.length, broken: pictures.filter(i => !i.naturalWidth).length,
    width: innerWidth, needs: document.documentElement.scrollWidth, headings: document.querySelectorAll("h1").length,
    scrolled: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth).length}, "*");
});
</script>"""


def opened(folder, text, width):
    """What the page says of itself, opened in a frame of that many pixels; and what stood in the console."""
    inside = text.replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</head>", _SCRIPT + "</head>")
    (folder / "inside.html").write_text(inside, encoding="utf-8")
    frame = f'<iframe src="inside.html" style="width:{width}px;height:800px;border:0"></iframe><pre id="said"></pre>'
    listen = 'addEventListener("message", e => said.textContent = JSON.stringify(e.data))'
    (folder / "outside.html").write_text(f"<!doctype html><script>{listen}</script><body>{frame}", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, f"file://{folder}/outside.html"], capture_output=True, text=True, timeout=120)
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.S)
    assert said and said[1], f"the page did not answer: {done.stderr[-2000:]}"
    return json.loads(html.unescape(said[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
