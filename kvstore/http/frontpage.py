"""What a browser sees at `/`: links to everything that can be read."""

from __future__ import annotations

from typing import Final

__all__ = ["FRONT_PAGE"]

_LINKS: Final = (
    ("/v1/kv?limit=20", "the first keys"),
    ("/v1/cluster", "the nodes of the cluster"),
    ("/v1/cluster/node", "this node"),
    ("/v1/cluster/slots?limit=20", "where slots live"),
    ("/health/ready", "is this node ready?"),
    ("/metrics", "metrics for Prometheus"),
    ("/v1/openapi.json", "the interface as OpenAPI 3.1"),
)

_ITEMS: Final = "\n".join(
    f'<li><a href="{path}"><code>{path}</code></a> {text}</li>' for path, text in _LINKS
)

FRONT_PAGE: Final = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kvstore</title>
<style>
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto }}
</style>
<h1>kvstore</h1>
<p>A replicated key-value store. A key is a resource:</p>
<pre>curl -X PUT -H 'Content-Type: text/plain' -d 'hello' http://&lt;this address&gt;/v1/kv/greeting
curl http://&lt;this address&gt;/v1/kv/greeting</pre>
<ul>
{_ITEMS}
</ul>
</html>
""".encode()
