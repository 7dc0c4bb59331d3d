"""A W&B server on loopback for the unmodified client: runs, files, artifacts, registry, sweeps, and failures on demand.

It keeps everything in memory and answers GraphQL by projecting plain dictionaries on what a query selects. An operation
that it doesn't know is a GraphQL error and stands in `unknown`. It shows that our calls are right, not what the real
service permits.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import graphql
import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from graphql.language import ast

ENTITY, ORGANISATION, KEY = "players", "club", "0" * 40
REGISTRY_ENTITY = f"{ORGANISATION}_entity"  # In which an organisation keeps its registries
FEATURES = (
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP", "ARTIFACT_COLLECTION_MEMBERSHIP_FILES", "LARGE_FILENAMES",
    "ARTIFACT_TAGS", "ARTIFACT_REGISTRY_SEARCH", "INCLUDE_ARTIFACT_TYPES_IN_REGISTRY_CREATION",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION", "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
)  # fmt: skip
MOMENT = "2026-11-25T12:00:00Z"


class Refusal(Exception):
    "What the client asks for can't be had; its message becomes a GraphQL error."


@dataclass
class Run:
    "A run as the client has described it."

    entity: str
    project: str
    name: str  # Its id in addresses
    serial: int
    fields: dict[str, Any] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"

    @property
    def config(self) -> dict:
        "Its settings, without the client's own notes."
        stored = json.loads(self.fields.get("config") or "{}")
        return {name: one["value"] for name, one in stored.items() if not name.startswith("_")}

    @property
    def summary(self) -> dict:
        "The latest value of each figure."
        return json.loads(self.fields.get("summaryMetrics") or "{}")


@dataclass
class Artifact:
    "One version of an artifact."

    identity: str
    collection: str
    kind: str
    entity: str
    project: str
    run: str | None
    digest: str
    version: int
    metadata: str | None = None
    description: str | None = None
    state: str = "PENDING"
    manifest: str = ""  # Its key in the storage


@dataclass
class Collection:
    "Versions under one name: of a project, or linked into a registry."

    entity: str
    project: str
    name: str
    kind: str
    is_portfolio: bool
    versions: list[Artifact] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)  # Version by alias
    protected: set[str] = field(default_factory=set)  # Aliases that may not be moved


@dataclass
class Sweep:
    "A sweep, of which this server draws at random."

    identity: str
    entity: str
    project: str
    config: dict
    state: str = "RUNNING"
    agents: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def camel(name: str) -> str:
    "The name of an input as this server stores it."
    return {"modelName": "project", "entityName": "entity", "projectName": "project"}.get(name, name)


def edges(nodes: list[dict]) -> dict:
    "A connection, all on one page."
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node} for node in nodes]}


class WandbServer:
    "State and answers of the server; `url` and `environment` say how a client comes here."

    def __init__(self):
        self.url = ""
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.clients: dict[str, str] = {}  # Artifact by the client's own id of it
        self.collections: dict[tuple[str, str, str], Collection] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []  # Operations and paths, in order
        self.unknown: list[str] = []
        self.failures: list[int] = []  # Status codes of the next answers
        self.failing: int = 0  # Status code of every answer; 0: none
        self.failing_paths: tuple[str, ...] = ("/graphql", "/files", "/storage")
        self.numbers = itertools.count(1)
        self.lock = threading.RLock()

    def environment(self, folder: Path) -> dict[str, str]:
        "Variables with which a client process comes here and leaves its files in `folder`."
        places = {
            name: str(Path(folder) / name.lower())
            for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")
        }
        for place in places.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        return places | {
            "WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false", "WANDB_ENTITY": ENTITY, "no_proxy": "127.0.0.1",
        }  # fmt: skip

    @contextlib.contextmanager
    def broken(self, status: int, paths: tuple[str, ...] = ("/graphql", "/files", "/storage")) -> Iterator[None]:
        "Answers everything under these paths with a status such as 401, 429 or 500 during a block."
        self.failing, self.failing_paths = status, paths
        try:
            yield
        finally:
            self.failing = 0

    def the_run(self, name: str = "") -> Run:
        "The only run, or the one with this id."
        found = [run for run in self.runs.values() if name in ("", run.name)]
        assert len(found) == 1, [run.name for run in self.runs.values()]
        return found[0]

    # ---- runs

    def run_node(self, run: Run) -> dict:
        "A run as GraphQL shows it."
        tail = [json.dumps(run.history[-1])] if run.history else []
        return run.fields | {
            "__typename": "Run", "id": f"run-{run.serial}", "internalId": str(run.serial), "name": run.name,
            "state": run.state, "displayName": run.fields.get("displayName") or run.name,
            "config": run.fields.get("config") or "{}", "summaryMetrics": json.dumps(run.summary),
            "sweepName": run.fields.get("sweep"), "tags": run.fields.get("tags") or [],
            "logLineCount": len(run.log), "historyLineCount": len(run.history), "eventsLineCount": len(run.events),
            "historyTail": json.dumps(tail), "eventsTail": "[]", "wandbConfig": "{}", "createdAt": MOMENT,
            "heartbeatAt": MOMENT, "stopped": False, "shouldStop": False, "failed": run.state == "failed",
            "running": run.state == "running", "exitcode": 0, "readOnly": False, "fileCount": len(run.files),
            "user": {"name": ENTITY, "username": ENTITY}, "projectId": 1,
            "historyKeys": {"lastStep": len(run.history) - 1, "keys": {key: {} for row in run.history for key in row}},
            "history": lambda **_: [json.dumps(row) for row in run.history],
            "sampledHistory": lambda specs, **_: [
                [row for row in run.history if all(key in row for key in json.loads(one).get("keys", []))]
                for one in specs],
            "files": lambda names=None, **_: edges([
                {"id": name, "name": name, "sizeBytes": str(len(content)), "mimetype": "", "updatedAt": MOMENT,
                 "url": self.address(run.entity, run.project, run.name, name), "md5": "",
                 "directUrl": self.address(run.entity, run.project, run.name, name),
                 "uploadUrl": self.address(run.entity, run.project, run.name, name)}
                for name, content in run.files.items() if not names or name in names]),
            "project": self.project_node(run.entity, run.project),
        }  # fmt: skip

    def address(self, *parts: str) -> str:
        "Where content lies."
        return "/".join([f"{self.url}/storage", *parts])

    def store(self, key: str, content: bytes) -> None:
        "Keeps what a client uploads."
        self.storage[key] = content
        parts = key.split("/", 3)
        if len(parts) == 4 and tuple(parts[:3]) in self.runs:
            self.runs[tuple(parts[:3])].files[parts[3]] = content

    def upsert_bucket(self, input: dict, **_) -> dict:
        "Makes or changes a run."
        values = {camel(name): value for name, value in input.items() if value is not None}
        known = next((run for run in self.runs.values() if f"run-{run.serial}" == values.get("id")), None)
        entity, project = values.pop("entity", None) or ENTITY, values.pop("project", None) or "uncategorized"
        name = values.pop("name", None) or f"nameless{next(self.numbers)}"
        run = known or self.runs.get((entity, project, name))
        inserted = run is None
        if run is None:
            run = self.runs[entity, project, name] = Run(entity, project, name, next(self.numbers))
        values.pop("id", None)
        run.state = values.pop("state", run.state)
        if run.state == "finished" and "config" in values:
            run.state = "running"
        run.fields |= values
        if run.fields.get("sweep") in self.sweeps and run.name not in self.sweeps[run.fields["sweep"]].runs:
            self.sweeps[run.fields["sweep"]].runs.append(run.name)
        return {"bucket": self.run_node(run), "inserted": inserted}

    def stream(self, run: Run, body: dict) -> dict:
        "Takes what a run sends as it goes: history, system use, summary, log."
        for name, part in (body.get("files") or {}).items():
            rows = part.get("content", [])
            if name == "wandb-summary.json" and rows:
                run.fields["summaryMetrics"] = rows[-1]
            targets = {"wandb-history.jsonl": run.history, "wandb-events.jsonl": run.events}
            if name in targets:
                offset = part.get("offset", len(targets[name]))
                targets[name][offset : offset + len(rows)] = [json.loads(row) for row in rows]
            elif name == "output.log":
                run.log += [row for row in rows if isinstance(row, str)]
        if body.get("complete"):
            run.state = "finished" if not body.get("exitcode") else "failed"
        return {"limits": {"rate": 100}}

    # ---- projects, entities

    def project_node(self, entity: str, project: str) -> dict:
        "A project as GraphQL shows it."

        def run_of(name: str, **_) -> dict | None:
            run = self.runs.get((entity, project, name))
            return self.run_node(run) if run else None

        def runs_of(**_) -> dict:
            found = [run for key, run in self.runs.items() if key[:2] == (entity, project)]
            connection = edges([self.run_node(run) for run in found])
            for edge in connection["edges"]:
                edge["cursor"] = None
            return connection

        def collection_of(name: str, **_) -> dict | None:
            found = self.collections.get((entity, project, name))
            return self.collection_node(found) if found else None

        def kind_of(name: str, **_) -> dict:
            def collections_of(**_) -> dict:
                found = [c for key, c in self.collections.items() if key[:2] == (entity, project) and c.kind == name]
                return edges([self.collection_node(one) for one in found])

            return {
                "__typename": "ArtifactType", "id": f"type-{name}", "name": name, "description": None,
                "createdAt": MOMENT, "artifactCollection": collection_of, "artifactCollections": collections_of,
            }  # fmt: skip

        def all_collections(**_) -> dict:
            found = [one for key, one in self.collections.items() if key[:2] == (entity, project)]
            return edges([self.collection_node(one) for one in found])

        kinds = sorted({one.kind for key, one in self.collections.items() if key[:2] == (entity, project)}) or ["model"]
        return {
            "__typename": "Project", "id": f"project-{project}", "internalId": "1", "name": project,
            "entityName": entity, "description": "", "createdAt": MOMENT, "updatedAt": MOMENT, "access": "PRIVATE",
            "allowAllArtifactTypes": True, "isBenchmark": False, "readOnly": False, "isPublished": False,
            "entity": {"id": f"entity-{entity}", "name": entity, "organization": {"name": ORGANISATION}},
            "bucket": run_of, "run": run_of, "runs": runs_of, "runCount": len(self.runs), "artifactType": kind_of,
            "artifactTypes": lambda **_: edges([kind_of(kind) for kind in kinds]),
            "artifactCollection": collection_of, "artifactCollections": all_collections,
            "artifactCollectionMembership": lambda name, **_: self.membership_by_name(entity, project, name),
            "artifact": lambda name, **_: self.artifact_by_name(entity, project, name),
            "sweep": lambda sweepName=None, **_: self.sweep_node(sweepName), "tags": [],
        }  # fmt: skip

    def entity_node(self, name: str, **_) -> dict:
        "A person, a team, or what holds an organisation's registries."
        organisation = {
            "__typename": "Organization", "id": "org-1", "name": ORGANISATION, "coreWeaveOrganizationId": None,
            "orgEntity": {"__typename": "Entity", "id": "entity-org", "name": REGISTRY_ENTITY, "entityType": "ORG"},
        }  # fmt: skip
        return {
            "__typename": "Entity", "id": f"entity-{name}", "name": name, "isTeam": True, "organization": organisation,
            "user": None, "xxhashDigestsEnabled": False,
            "project": lambda name=None, entity=name, **_: self.project_node(entity, name),
        }  # fmt: skip

    # ---- artifacts

    def artifact_node(self, one: Artifact) -> dict:
        "An artifact as GraphQL shows it."
        places = [place for place in self.collections.values() if one in place.versions]
        own = next(place for place in places if not place.is_portfolio)
        files = self.manifest_of(one)
        aliases = [
            {"__typename": "ArtifactAlias", "id": f"alias-{place.project}-{place.name}-{alias}", "alias": alias,
             "artifactCollectionName": place.name, "artifactCollection": self.collection_node(place)}
            for place in places for alias, version in place.aliases.items() if place.versions[version] is one
        ]  # fmt: skip
        latest = own.versions[own.aliases["latest"]] if "latest" in own.aliases else None
        return {
            "__typename": "Artifact", "id": one.identity, "versionIndex": one.version, "digest": one.digest,
            "digestAlgorithm": "MANIFEST_MD5", "description": one.description, "metadata": one.metadata,
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": one.state,
            "size": sum(entry.get("size", 0) for entry in files.values()), "commitHash": one.digest[:20],
            "fileCount": len(files), "createdAt": MOMENT, "updatedAt": None, "aliases": aliases,
            "artifactType": {"id": one.kind, "name": one.kind}, "artifactSequence": self.collection_node(own) | {
                "latestArtifact": {"id": latest.identity, "versionIndex": latest.version} if latest else None},
            "currentManifest": {"file": {"id": one.manifest, "directUrl": self.address(one.manifest)}},
            "artifactMemberships": lambda **_: edges([self.membership_node(place, one) for place in places]),
            "createdBy": self.run_node(self.runs[one.entity, one.project, one.run]) if one.run else None,
            "usedBy": lambda **_: edges([]),
            "filesByManifestEntries": lambda entries=(), **_: edges(
                [{"name": entry["name"], "directUrl": self.entry_address(one, entry["name"])} for entry in entries]),
            "files": lambda names=None, **_: self.files_of(one, names),
        }  # fmt: skip

    def manifest_of(self, one: Artifact) -> dict[str, dict]:
        "What an artifact holds, by name."
        return json.loads(self.storage[one.manifest])["contents"] if one.manifest in self.storage else {}

    def entry_address(self, one: Artifact, name: str) -> str:
        "Where a file of an artifact lies."
        entry = self.manifest_of(one)[name]
        return self.address("artifacts", base64.b64decode(entry["digest"]).hex())

    def files_of(self, one: Artifact, names: list[str] | None) -> dict:
        "The files of an artifact as GraphQL shows them."
        return edges([
            {"__typename": "File", "id": f"{one.identity}-{name}", "name": name, "displayName": name, "url": None,
             "sizeBytes": entry.get("size", 0), "storagePath": name, "mimetype": None, "updatedAt": MOMENT,
             "digest": entry["digest"], "md5": entry["digest"], "directUrl": self.entry_address(one, name)}
            for name, entry in self.manifest_of(one).items() if not names or name in names
        ])  # fmt: skip

    def collection_node(self, one: Collection) -> dict:
        "A collection as GraphQL shows it, without its versions."
        kind = "ArtifactPortfolio" if one.is_portfolio else "ArtifactSequence"
        project = {"__typename": "Project", "id": f"project-{one.project}", "internalId": "1", "name": one.project,
                   "entity": {"id": f"entity-{one.entity}", "name": one.entity}}  # fmt: skip
        return {
            "__typename": kind, "id": f"collection-{one.entity}-{one.project}-{one.name}", "name": one.name,
            "description": None, "createdAt": MOMENT, "updatedAt": None, "project": project, "state": "READY",
            "defaultArtifactType": {"name": one.kind}, "tags": edges([]), "ttlDurationSeconds": -2,
            "artifactMembership": lambda aliasName, **_: self.membership_by_name(
                one.entity, one.project, f"{one.name}:{aliasName}"),
            "aliases": lambda **_: edges([
                {"__typename": "ArtifactAlias", "id": f"alias-{alias}", "alias": alias} for alias in one.aliases]),
            "artifacts": lambda **_: self.versions_of(one),
        }  # fmt: skip

    def versions_of(self, one: Collection) -> dict:
        "All versions in a collection, newest first."
        numbered = list(enumerate(one.versions))[::-1]
        connection = edges([self.artifact_node(version) for _, version in numbered])
        for edge, (number, _) in zip(connection["edges"], numbered, strict=True):
            edge["version"] = f"v{number}"
        return connection

    def membership_node(self, place: Collection, one: Artifact) -> dict:
        "A version within a collection."
        number = place.versions.index(one)
        aliases = [alias for alias, version in place.aliases.items() if version == number]
        return {
            "__typename": "ArtifactCollectionMembership", "id": f"membership-{place.name}-{number}",
            "versionIndex": number, "createdAt": MOMENT, "artifactCollection": self.collection_node(place),
            "aliases": [{"__typename": "ArtifactAlias", "id": f"alias-{alias}", "alias": alias} for alias in aliases],
            "artifact": self.artifact_node(one), "files": lambda names=None, **_: self.files_of(one, names),
        }  # fmt: skip

    def membership_by_name(self, entity: str, project: str, name: str) -> dict | None:
        "The membership that `collection:alias` or `collection:v3` names."
        collection, _, alias = name.partition(":")
        place = self.collections.get((entity, project, collection))
        if place is None:
            return None
        alias = alias or "latest"
        number = place.aliases.get(alias, int(alias[1:]) if alias[1:].isdigit() else None)
        if number is None or number >= len(place.versions) or place.versions[number].state != "COMMITTED":
            return None
        return self.membership_node(place, place.versions[number])

    def artifact_by_name(self, entity: str, project: str, name: str) -> dict | None:
        "The artifact that `collection:alias` names."
        membership = self.membership_by_name(entity, project, name)
        return membership and membership["artifact"]

    def create_artifact(self, input: dict, **_) -> dict:
        "Begins a version; one with the same content is the same version."
        entity, project = input["entityName"] or ENTITY, input["projectName"]
        name = input.get("artifactCollectionName") or input["artifactCollectionNames"][0]
        place = self.collections.setdefault(
            (entity, project, name), Collection(entity, project, name, input["artifactTypeName"], False))
        if place.kind != input["artifactTypeName"]:
            raise Refusal(f"{name} is of type {place.kind}")
        one = next((known for known in place.versions if known.digest == input["digest"]), None)
        if one is None:
            one = Artifact(f"artifact-{next(self.numbers)}", name, place.kind, entity, project, input.get("runName"),
                           input["digest"], len(place.versions), input.get("metadata"), input.get("description"))
            place.versions.append(one)
            self.artifacts[one.identity] = one
        if input.get("clientID"):
            self.clients[input["clientID"]] = one.identity
        for alias in [{"alias": "latest"}, *(input.get("aliases") or [])]:
            place.aliases[alias["alias"]] = one.version
        return {"artifact": self.artifact_node(one)}

    def manifest_file(self, identity: str) -> dict:
        "Where an artifact's manifest goes."
        one = self.artifacts[identity]
        one.manifest = f"manifests/{identity}"
        file = {"id": one.manifest, "name": "wandb_manifest.json", "displayName": "wandb_manifest.json",
                "uploadUrl": self.address(one.manifest), "uploadHeaders": []}  # fmt: skip
        return {"artifactManifest": {"id": identity, "file": file}}

    def create_files(self, input: dict, **_) -> dict:
        "Where an artifact's files go: by their checksum."
        nodes = []
        for one in input["artifactFiles"]:
            key = base64.b64decode(one["md5"]).hex()
            url = None if f"artifacts/{key}" in self.storage else self.address("artifacts", key)
            nodes.append({"id": key, "name": one["name"], "displayName": one["name"], "storagePath": f"artifacts/{key}",
                          "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None,
                          "artifact": {"id": one["artifactID"]}})  # fmt: skip
        return {"files": edges(nodes)}

    def commit(self, input: dict, **_) -> dict:
        "Ends a version: from now on it can be used."
        one = self.artifacts[input["artifactID"]]
        one.state = "COMMITTED"
        return {"artifact": self.artifact_node(one)}

    def link(self, input: dict, **_) -> dict:
        "Puts a version into a registry, under aliases."
        one = self.artifacts[input.get("artifactID") or self.clients[input["clientID"]]]
        key = (input["entityName"], input["projectName"], input["artifactPortfolioName"])
        place = self.collections.setdefault(key, Collection(*key, one.kind, True))
        if one not in place.versions:
            place.versions.append(one)
        self.add_aliases({"aliases": input.get("aliases") or []}, place, place.versions.index(one))
        place.aliases["latest"] = place.versions.index(one)
        return {"versionIndex": place.versions.index(one), "artifactMembership": self.membership_node(place, one)}

    def add_aliases(self, input: dict, place: Collection | None = None, number: int | None = None, **_) -> dict:
        "Moves aliases to a version. A protected alias is refused."
        for alias in input["aliases"]:
            target = place or self.collections[
                alias["entityName"], alias["projectName"], alias["artifactCollectionName"]]
            version = number
            if version is None:
                version = target.versions.index(self.artifacts[input["artifactID"]])
            if alias["alias"] in target.protected and target.aliases.get(alias["alias"]) != version:
                raise Refusal(f"alias {alias['alias']!r} is protected: permission denied")
            target.aliases[alias["alias"]] = version
        return {"success": True}

    def delete_aliases(self, input: dict, **_) -> dict:
        "Takes aliases away from a version."
        for alias in input["aliases"]:
            place = self.collections[alias["entityName"], alias["projectName"], alias["artifactCollectionName"]]
            if alias["alias"] in place.protected:
                raise Refusal(f"alias {alias['alias']!r} is protected: permission denied")
            place.aliases.pop(alias["alias"], None)
        return {"success": True}

    def update_artifact(self, input: dict, **_) -> dict:
        "Changes description and metadata."
        one = self.artifacts[input["artifactID"]]
        one.metadata = input.get("metadata", one.metadata)
        one.description = input.get("description", one.description)
        return {"artifact": self.artifact_node(one)}

    # ---- sweeps

    def sweep_node(self, name: str) -> dict | None:
        "A sweep as GraphQL shows it."
        one = self.sweeps.get(name)
        if one is None:
            return None
        runs = [run for run in self.runs.values() if run.name in one.runs]
        return {
            "__typename": "Sweep", "id": one.identity, "name": one.identity, "state": one.state, "method": "random",
            "config": yaml.safe_dump(one.config), "description": None, "createdAt": MOMENT, "heartbeatAt": MOMENT,
            "updatedAt": MOMENT, "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
            "runCount": len(runs), "runCountExpected": None, "displayName": None, "priorRuns": edges([]),
            "runs": lambda **_: edges([self.run_node(run) for run in runs]),
            "project": self.project_node(one.entity, one.project),
        }  # fmt: skip

    def upsert_sweep(self, input: dict, **_) -> dict:
        "Makes a sweep or changes its state."
        one = self.sweeps.get(input.get("id") or "")
        if one is None:
            config = yaml.safe_load(input["config"])
            identity = f"sweep{next(self.numbers)}"
            entity, project = input.get("entityName") or ENTITY, input.get("projectName") or "uncategorized"
            one = self.sweeps[identity] = Sweep(identity, entity, project, config)
        one.state = input.get("state") or one.state
        return {"sweep": self.sweep_node(one.identity), "configValidationWarnings": []}

    def create_agent(self, input: dict, **_) -> dict:
        "Registers an agent of a sweep."
        one = self.sweeps[input["sweep"]]
        one.agents.append(f"{one.identity}-agent{len(one.agents)}")
        return {"agent": {"id": one.agents[-1]}}

    def heartbeat(self, input: dict, **_) -> dict:
        "Tells an agent what to run next: one run at a time, `run_cap` in all (three without one)."
        one = self.sweeps[input["id"].split("-agent")[0]]
        states = json.loads(input.get("runState") or "{}")
        running = [name for name, state in states.items() if state in (True, "running")]
        commands = []
        if one.state != "RUNNING" or (len(one.runs) >= one.config.get("run_cap", 3) and not running):
            commands = [{"type": "exit"}]
            one.state = "FINISHED"
        elif not running:
            name = f"{one.identity}trial{len(one.runs)}"
            one.runs.append(name)
            draw = random.Random(len(one.runs))
            arguments = {key: {"value": draw_value(draw, space)} for key, space in one.config["parameters"].items()}
            command = {"type": "run", "run_id": name, "args": arguments, "program": one.config.get("program")}
            commands = [command | {"id": name}]
        return {"agent": {"id": input["id"]}, "commands": json.dumps(commands)}

    # ---- GraphQL

    def fields(self) -> dict[str, Callable]:
        "What a query may begin with."
        viewer = {
            "__typename": "User", "id": "user-1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "admin": False,
            "email": "", "flags": "{}", "teams": edges([{"name": ENTITY}]), "apiKeys": edges([]), "deletedAt": None,
            "organizations": [], "capabilities": [],
        }  # fmt: skip
        versions = {"max_cli_version": "0.99.0", "min_cli_version": "0.10.0", "cut_off_at": None}
        info = {
            "features": [{"name": name, "isEnabled": True} for name in FEATURES], "cliVersionInfo": versions,
            "latestLocalVersionInfo": None, "exposesExplicitRunIdentifier": True,
        }  # fmt: skip
        return {
            "viewer": lambda **_: viewer, "serverInfo": lambda **_: info, "entity": self.entity_node,
            "organization": lambda name, **_: self.entity_node(name)["organization"] | {"featureFlags": []},
            "model": lambda name=None, entityName=None, **_: self.project_node(entityName or ENTITY, name),
            "project": lambda name=None, entityName=None, **_: self.project_node(entityName or ENTITY, name),
            "upsertModel": lambda input, **_: {
                "model": self.project_node(input.get("entityName") or ENTITY, input["name"]), "inserted": True},
            "upsertBucket": self.upsert_bucket, "createRunFiles": self.create_run_files,
            "markRunFilesUploaded": lambda **_: {"success": True},
            "artifact": lambda id, **_: self.artifact_node(self.artifacts[id]),
            "artifactCollection": lambda id, **_: next(
                node for node in map(self.collection_node, self.collections.values()) if node["id"] == id),
            "clientIDMapping": lambda clientID, **_: {"serverID": self.clients[clientID]},
            "createArtifact": self.create_artifact, "createArtifactFiles": self.create_files,
            "createArtifactManifest": lambda input, **_: self.manifest_file(input["artifactID"]),
            "updateArtifactManifest": lambda input, **_: self.manifest_file(input["artifactManifestID"]),
            "commitArtifact": self.commit, "linkArtifact": self.link, "updateArtifact": self.update_artifact,
            "useArtifact": lambda input, **_: {"artifact": self.artifact_node(self.artifacts[input["artifactID"]])},
            "addAliases": self.add_aliases, "deleteAliases": self.delete_aliases, "upsertSweep": self.upsert_sweep,
            "createAgent": self.create_agent, "agentHeartbeat": self.heartbeat,
        }  # fmt: skip

    def create_run_files(self, input: dict, **_) -> dict:
        "Where files of a run go."
        place = (input["entityName"], input["projectName"], input["runName"])
        files = [{"name": name, "uploadUrl": self.address(*place, name)} for name in input["files"]]
        return {"runID": input["runName"], "uploadHeaders": [], "files": files}

    def answer(self, query: str, variables: dict) -> dict:
        "Answers one GraphQL request."
        document = graphql.parse(query)
        operation = next(one for one in document.definitions if isinstance(one, ast.OperationDefinitionNode))
        fragments = {one.name.value: one for one in document.definitions if isinstance(one, ast.FragmentDefinitionNode)}
        for definition in operation.variable_definitions or ():
            name = definition.variable.name.value
            if name not in variables and definition.default_value is not None:
                variables[name] = graphql.value_from_ast_untyped(definition.default_value)
        name = operation.name.value if operation.name else ""
        self.requests.append(name)
        unknown = [one.name.value for one in operation.selection_set.selections if isinstance(one, ast.FieldNode)
                   and one.name.value not in self.fields()]  # fmt: skip
        if unknown:
            self.unknown.append(query)
            return {"errors": [{"message": f"Cannot query field {unknown[0]!r}"}]}
        try:
            return {"data": project(self.fields(), operation.selection_set, fragments, variables)}
        except Exception as error:  # the client sees a refusal, never a half answer
            if not isinstance(error, Refusal):
                self.unknown.append(f"{type(error).__name__}: {error} in {query} with {variables}")
            return {"data": None, "errors": [{"message": f"{type(error).__name__}: {error}"}]}


def draw_value(draw: random.Random, space: dict) -> Any:
    "A value of one parameter of a sweep."
    if "value" in space:
        return space["value"]
    if "values" in space:
        return draw.choice(space["values"])
    if isinstance(space["min"], int) and isinstance(space["max"], int):
        return draw.randint(space["min"], space["max"])
    return draw.uniform(space["min"], space["max"])


def project(value: Any, wanted: ast.SelectionSetNode | None, fragments: dict, variables: dict) -> Any:
    "The part of a value that a query selects; what a dictionary doesn't have is null."
    if isinstance(value, list):
        return [project(one, wanted, fragments, variables) for one in value]
    if wanted is None or value is None:
        return value
    shown = {}
    for one in wanted.selections:
        if any(d.name.value == "include" and not graphql.value_from_ast_untyped(d.arguments[0].value, variables)
               for d in one.directives or []):  # fmt: skip
            continue
        if not isinstance(one, ast.FieldNode):
            part = fragments[one.name.value] if isinstance(one, ast.FragmentSpreadNode) else one
            shown |= project(value, part.selection_set, fragments, variables)
            continue
        found = value.get(one.name.value)
        if callable(found):
            given = {a.name.value: graphql.value_from_ast_untyped(a.value, variables) for a in one.arguments or ()}
            found = found(**{name: argument for name, argument in given.items() if argument is not graphql.Undefined})
        shown[(one.alias or one.name).value] = project(found, one.selection_set, fragments, variables)
    return shown


def build_app(server: WandbServer) -> FastAPI:
    "The HTTP side."
    app = FastAPI()

    @app.middleware("http")
    async def fail(request: Request, proceed: Callable) -> Response:
        is_meant = request.url.path.startswith(server.failing_paths)
        status = server.failing or (server.failures.pop(0) if server.failures and is_meant else 0)
        if status and is_meant:
            server.requests.append(f"{status} {request.url.path}")
            return JSONResponse({"errors": [{"message": f"this server was told to answer {status}"}]}, status)
        return await proceed(request)

    @app.post("/graphql")
    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        with server.lock:
            return JSONResponse(server.answer(body["query"], dict(body.get("variables") or {})))

    @app.post("/files/{entity}/{project}/{run}/file_stream")
    async def stream(entity: str, project: str, run: str, request: Request) -> dict:
        body = await request.json()
        with server.lock:
            return server.stream(server.runs[entity, project, run], body)

    @app.put("/storage/{key:path}")
    async def upload(key: str, request: Request) -> Response:
        content = await request.body()
        with server.lock:
            server.store(key, content)
        return Response(headers={"ETag": hashlib.md5(content).hexdigest()})

    @app.get("/storage/{key:path}")
    def download(key: str) -> Response:
        if key not in server.storage:
            return Response(status_code=404)
        return Response(server.storage[key], media_type="application/octet-stream")

    @app.get("/healthz")
    def alive() -> dict:
        return {}

    return app


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    "A W&B server in a thread of this process, on a free port of loopback."
    server = WandbServer()
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(build_app(server), log_level="error", lifespan="off", access_log=False)
    process = uvicorn.Server(config)
    thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not process.started:
        time.sleep(0.02)
    try:
        yield server
    finally:
        process.should_exit = True
        thread.join(30)
        listener.close()
