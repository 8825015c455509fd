"""A guest book: GET / shows it, POST / signs it."""

from threading import Lock

from flask import Flask, abort, redirect, render_template, request


def create_app() -> Flask:
    app = Flask(__name__)
    entries: list[str] = []
    lock = Lock()

    @app.get("/")
    def show():
        with lock:
            return render_template("book.html", entries=list(entries))

    @app.post("/")
    def sign():
        name = request.form.get("name", "").strip()
        if not name or len(name) > 80:
            abort(400, "a name has 1 to 80 characters")
        with lock:
            entries.append(name)
            del entries[:-100]
        return redirect("/", code=303)

    @app.get("/healthz")
    def health():
        return "", 204

    return app
