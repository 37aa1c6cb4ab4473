"""A Milvus server in memory: what `milvus_store` needs of pymilvus' client, one row at a time."""

from __future__ import annotations

import numpy as np
import pytest

MilvusException = pytest.importorskip("pymilvus").MilvusException


class Fields(list):
    """Schema and index parameters."""

    def add_field(self, name, kind, **options):
        self.append((name, kind, options))

    def add_index(self, field, **options):
        self.append((field, options))


class FakeMilvus:
    """Collections as dicts of rows. `fail_at` is the number of the change that fails, after the change or before it."""

    def __init__(self):
        self.rows, self.descriptions, self.changes, self.fail_at, self.after = {}, {}, 0, None, False

    def has_collection(self, name):
        return name in self.rows

    def describe_collection(self, name):
        return {"description": self.descriptions[name]}

    def create_schema(self, *, description, **options):
        fields = Fields()
        fields.description = description
        return fields

    def prepare_index_params(self):
        return Fields()

    def create_collection(self, name, *, schema, index_params, **options):
        with self._change():
            self.rows[name], self.descriptions[name] = {}, schema.description

    def insert(self, name, data, **options):
        with self._change():
            self.rows[name].update({row["key"]: row for row in data})

    def delete(self, name, *, filter, **options):
        with self._change():
            for row in self._where(name, filter):
                del self.rows[name][row["key"]]

    def flush(self, name, **options):
        with self._change():
            pass

    compact = flush

    def query(self, name, *, filter, output_fields=("key",), limit=None, **options):
        rows = self._where(name, filter)[:limit]
        if output_fields == ["count(*)"]:
            return [{"count(*)": len(rows)}]
        return [{field: row[field] for field in output_fields} for row in rows]

    def search(self, name, *, data, filter, limit, output_fields, **options):
        rows = self._where(name, filter)
        answers = []
        for query in data:
            ranked = sorted(((float(np.dot(row["features"], query)), row["key"]) for row in rows), reverse=True)[:limit]
            answers.append(
                [{"id": key, "distance": product, "entity": self.rows[name][key]} for product, key in ranked]
            )
        return answers

    def _where(self, name, condition):
        """The condition is an expression of Python too: names, numbers, texts, and, or, in."""
        return [row for row in self.rows[name].values() if eval(condition, {"__builtins__": {}}, row)]

    def _change(self):
        return Failure(self)


class Failure:
    """Context of a change: raises at the number `fail_at`, before or after the change."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        self.server.changes += 1
        self.fails = self.server.changes == self.server.fail_at
        if self.fails and not self.server.after:
            raise MilvusException(message="the server was stopped")

    def __exit__(self, kind, error, trace):
        if self.fails and kind is None:
            raise MilvusException(message="the connection was lost")
