"""One request, to a URL with a JSON body if there is one: its status, and the reply's JSON."""

import json
import sys

import httpx

if __name__ == "__main__":
    url, *body = sys.argv[1:]
    reply = httpx.post(url, json=json.loads(*body), timeout=120) if body else httpx.get(url)
    print(json.dumps([reply.status_code, reply.json()]))
