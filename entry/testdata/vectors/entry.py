#!/usr/bin/env python3
"""The entry format of ../../FORMAT.md, from the page alone: a second implementation to test the first against.

    entry.py DIRECTORY   runs the vectors in it
    entry.py -           reads leaves in hex, one a line, and answers "ok HASH SLOT" or "error ..." for each
"""
import hashlib, ipaddress, base64, binascii, calendar, json, pathlib, re, struct, sys

MAX = 2**53 - 1


class Syntax(Exception):
    pass


class Field(Exception):
    pass


class Version(Exception):
    pass


STRING = re.compile(rb'"([\x20-\x21\x23-\x5b\x5d-\x7e]*)')
INTEGER = re.compile(rb"[0-9]+")


class Reader:
    """Section 1. schema is None for any version, else the types of the fields."""

    def __init__(self, b):
        self.b, self.i = b, 0

    def peek(self):
        return self.b[self.i : self.i + 1]

    def take(self, c):
        if self.peek() != c:
            raise Syntax(self.i)
        self.i += 1

    def string(self):
        m = STRING.match(self.b, self.i)
        if not m:
            raise Syntax(self.i)
        if self.b[m.end() : m.end() + 1] != b'"':
            raise Syntax(m.end())
        if not m[1]:
            raise Syntax(self.i)
        self.i = m.end() + 1
        return m[1].decode()

    def integer(self):
        m = INTEGER.match(self.b, self.i)
        if not m or (m[0][0] == 48 and len(m[0]) > 1) or len(m[0]) > 16 or int(m[0]) > MAX:
            raise Syntax(self.i)
        self.i = m.end()
        if self.peek() in (b".", b"e", b"E"):
            raise Syntax(self.i)
        return int(m[0])

    def object(self, schema, depth):
        self.take(b"{")
        out, last = {}, ""
        while True:
            at = self.i
            key = self.string()
            if key <= last or (schema is not None and key not in schema):
                raise Syntax(at)
            last = key
            self.take(b":")
            out[key] = self.value(schema and schema[key], depth)
            if self.peek() != b",":
                break
            self.i += 1
        self.take(b"}")
        return out

    def array(self, item):
        self.take(b"[")
        out = [item()]
        while self.peek() == b",":
            self.i += 1
            out.append(item())
        self.take(b"]")
        return out

    def value(self, t, depth):
        if t == "string":
            return self.string()
        if t == "integer":
            return self.integer()
        if t == "array":
            return self.array(self.string)
        if isinstance(t, dict):
            return self.object(t, depth + 1)
        if self.peek() in (b"{", b"[") and depth == 8:
            raise Syntax(self.i)
        if self.peek() == b"{":
            return self.object(None, depth + 1)
        if self.peek() == b"[":
            return self.array(lambda: self.value(None, depth + 1))
        if self.peek() == b'"':
            return self.string()
        return self.integer()

    def whole(self, schema):
        o = self.object(schema, 1)
        if self.i != len(self.b):
            raise Syntax(self.i)
        return o


# Section 3: types, and section 5.
PUBLISHER = dict.fromkeys("environment issuer kind owner_id repository repository_id subject workflow".split(), "string")
SCHEMA = dict.fromkeys(
    "auth claim ecosystem file id kind metadata_sha256 origin overwrite project reason registry root sha256 sha512 slot_claim "
    "subject tag time upload_time uploader url version".split(), "string")
SCHEMA |= dict.fromkeys("count first_index index replaces size v".split(), "integer")
SCHEMA |= dict.fromkeys("attestation_sha256 sources_sha256 vkeys".split(), "array")
SCHEMA["publisher"] = PUBLISHER

REASONS = """broken compromised legal license malware mistake name-dispute other owner-request policy refused-by-index security
    spam stolen-credential superseded typosquat unmaintained upload-failed""".split()

# Section 4: claims, required, permitted.
STATE = ("index observed", "id registry ecosystem project", "version file sha256 sha512 reason")
ARCHIVE = ("index observed", "id registry ecosystem project", "reason")
PUB = ("index observed", "id registry ecosystem project publisher", "")
OWN = ("index observed", "id registry ecosystem project subject", "")
KINDS = {
    "upload": ("index observed", "registry ecosystem project file",
               "version size sha256 sha512 upload_time replaces metadata_sha256 publisher auth uploader attestation_sha256 sources_sha256"),
    "yank": STATE, "unyank": STATE, "quarantine": STATE, "unquarantine": STATE, "deprecate": STATE, "undeprecate": STATE,
    "remove": STATE, "archive": ARCHIVE, "unarchive": ARCHIVE,
    "reject": ("index", "id registry ecosystem project file sha256", "sha512 reason"),
    "dispute": ("index", "id registry index", "reason"),
    "dist-tag": ("index observed", "id registry ecosystem project tag", "version"),
    "publisher-add": PUB, "publisher-remove": PUB, "owner-add": OWN, "owner-remove": OWN,
    "registry-policy": ("index", "id registry ecosystem overwrite", ""),
    "baseline": ("index observed", "id registry ecosystem count sha256", ""),
    "conflict": ("log", "id registry ecosystem project file slot_claim first_index", "sha256 sha512"),
    "canary": ("log", "id", ""),
    "successor": ("log", "id origin vkeys url", ""),
    "predecessor": ("log", "id origin size root", ""),
}
PUBLISHERS = {
    "github": ("repository workflow", "environment issuer owner_id repository_id subject"),
    "gitlab": ("repository workflow", "environment issuer owner_id repository_id subject"),
    "google": ("subject", "issuer"),
    "activestate": ("repository", "issuer owner_id subject"),
    "npm": ("repository", "environment issuer owner_id repository_id subject workflow"),
    "oidc": ("issuer subject", ""),
}


def full(pattern, s):
    return re.fullmatch(pattern, s, re.A) is not None


def hexes(n):
    return lambda s: full("[0-9a-f]{%d}" % n, s)


def segments(s, chars, least=1, most=10**6):
    parts = s.split("/")
    return least <= len(parts) <= most and all(p not in (".", "..") and full(f"[{chars}]+", p) for p in parts)


def time(s):
    m = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", s)
    if not m:
        return False
    y, mo, d, h, mi, sec = map(int, m.groups())
    return y >= 1970 and 1 <= mo <= 12 and 1 <= d <= calendar.monthrange(y, mo)[1] and h < 24 and mi < 60 and sec < 60


def label(s):
    return 1 <= len(s) <= 128 and s == s.strip(" ")


def origin(s):
    return 1 <= len(s) <= 255 and " " not in s and "+" not in s


def host(h):
    if h.startswith("["):
        try:
            a = ipaddress.IPv6Address(h[1:-1])
        except ValueError:
            return False
        return a.ipv4_mapped is None and h == f"[{a}]" and "%" not in h
    labels = h.split(".")
    if not labels[-1][:1].isalpha():
        parts = h.split(".")
        return len(parts) == 4 and all(full("0|[1-9][0-9]{0,2}", p) and int(p) < 256 for p in parts)
    return len(h) <= 253 and all(full("(?!-)[a-z0-9-]{1,63}(?<!-)", p) for p in labels)


def registry(s):
    if not 1 <= len(s) <= 255:
        return False
    where, slash, path = s.partition("/")
    m = re.fullmatch(r"(\[[^\]]*\]|[^:\[]*)(?::(.*))?", where)
    if not m or not host(m[1]):
        return False
    if m[2] is not None and (not full("[1-9][0-9]{0,4}", m[2]) or int(m[2]) > 65535 or m[2] in ("80", "443")):
        return False
    return not slash or segments(path, r"A-Za-z0-9._~-")


def url(s):
    m = re.fullmatch("https?://(.*?)/?", s)
    return len(s) <= 255 and m is not None and registry(m[1])


def vkey(s):
    parts = s.split("+", 2)
    if len(s) > 2048 or len(parts) != 3 or not origin(parts[0]) or not hexes(8)(parts[1]):
        return False
    try:
        raw = base64.b64decode(parts[2], validate=True)
    except binascii.Error:
        return False
    return len(raw) >= 2 and base64.b64encode(raw).decode() == parts[2]


def project(eco, s):
    if not 1 <= len(s) <= 214:
        return False
    if eco == "pypi":
        return full("[a-z0-9]+(-[a-z0-9]+)*", s)
    if eco == "npm":
        c = r"[A-Za-z0-9_~!*'()-][A-Za-z0-9._~!*'()-]*"
        return full(f"(@{c}/)?{c}", s)
    if eco == "conda":
        return full("[a-z0-9_-][a-z0-9._-]*", s)
    return segments(s, "A-Za-z0-9._+@~-")


def file(eco, s):
    if not 1 <= len(s) <= 255:
        return False
    if eco == "pypi":
        return segments(s, "A-Za-z0-9._+!~@=-", 1, 1)
    if eco == "npm":
        return segments(s, "A-Za-z0-9._+!~@=*'()-", 1, 1) and full(r".+\.tgz", s)
    if eco == "conda":
        return segments(s, "A-Za-z0-9._+!~@=-", 2, 2) and full(r".+/.+\.(conda|tar\.bz2)", s)
    return segments(s, "A-Za-z0-9._+!~@=-")


def one_of(*values):
    return lambda s: s in values


CHECK = dict(
    attestation_sha256=hexes(64), auth=one_of("trusted-publisher", "token", "password", "other"), ecosystem=one_of("pypi", "npm", "conda", "generic"),
    id=hexes(32), metadata_sha256=hexes(64), origin=origin, overwrite=one_of("never", "after-remove", "replace"), reason=one_of(*REASONS),
    registry=registry, root=hexes(64), sha256=hexes(64), sha512=hexes(128), slot_claim=one_of("index", "observed"), sources_sha256=hexes(64),
    subject=hexes(64), tag=label, time=time, upload_time=time, uploader=hexes(64), url=url, version=label, vkeys=vkey)


def email(s):
    s = s.replace("%40", "@")
    for i in range(1, len(s)):
        if s[i] != "@" or s[i - 1] in " /:<>@(),;":
            continue
        domain = re.match(r"[A-Za-z0-9.-]*", s[i + 1 :])[0].strip(".")
        head, dot, last = domain.rpartition(".")
        if dot and head and full("[A-Za-z].+", last):
            return True
    return False


def publisher(p):
    def refuse(name):
        raise Field("publisher." + name)

    kind = p.get("kind")
    if kind not in PUBLISHERS:
        refuse("kind")
    need, may = (x.split() for x in PUBLISHERS[kind])
    for name in PUBLISHER:
        if name in need and name not in p or name in p and name not in need + may + ["kind"]:
            refuse(name)
        if name not in p:
            continue
        s = p[name]
        if len(s) > 256 or s != s.strip(" ") or email(s):
            refuse(name)
        if name == "issuer" and not url(s):
            refuse(name)
        if name == "repository" and not segments(s, "A-Za-z0-9._-", 2, 2 if kind in ("github", "activestate") else 10**6):
            refuse(name)
        if name in ("repository_id", "owner_id"):
            if not full("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}" if kind == "activestate" else "0|[1-9][0-9]{0,19}", s):
                refuse(name)
        if name == "subject" and kind == "google" and not hexes(64)(s):
            refuse(name)


def validate(e):
    kind, claim = e.get("kind"), e.get("claim")
    if kind not in KINDS:
        raise Field("kind")
    claims, need, may = (x.split() for x in KINDS[kind])
    if claim not in claims:
        raise Field("claim")
    need = need + "v kind claim time".split()
    for f in sorted(SCHEMA):
        if f in need and f not in e or f in e and f not in need + may:
            raise Field(f)
    eco = e.get("ecosystem")
    for f in sorted(e):
        v = e[f]
        if f == "publisher":
            publisher(v)
        elif f == "project" and not project(eco, v) or f == "file" and not file(eco, v):
            raise Field(f)
        elif isinstance(v, list):
            if len(v) > 16 or v != sorted(set(v)) or not all(map(CHECK[f], v)):
                raise Field(f)
        elif f in CHECK and not CHECK[f](v):
            raise Field(f)

    def digest(c):
        if "sha256" not in e and not (eco == "npm" and c == "observed" and "sha512" in e):
            raise Field("sha256")

    if kind == "upload":
        if "version" not in e and eco != "generic":
            raise Field("version")
        if "size" not in e and claim == "index":
            raise Field("size")
        if "upload_time" in e and claim != "observed":
            raise Field("upload_time")
        if "replaces" in e and claim != "index":
            raise Field("replaces")
        digest(claim)
    elif KINDS[kind] is STATE:
        if "file" in e:
            if "version" not in e and eco != "generic":
                raise Field("version")
            digest(claim)
        else:
            for f in ("sha256", "sha512"):
                if f in e:
                    raise Field(f)
            if "version" not in e and kind in ("yank", "unyank"):
                raise Field("version")
    elif kind == "dist-tag" and eco != "npm":
        raise Field("ecosystem")
    elif kind == "conflict":
        digest(e["slot_claim"])


def parse(leaf):
    if len(leaf) > 4096:
        raise Syntax(4096)
    try:
        v = Reader(leaf).whole(None).get("v")
    except Syntax:
        v = None
    if type(v) is int and v != 1:
        raise Version(v)
    e = Reader(leaf).whole(SCHEMA)
    if "v" not in e:
        raise Field("v")
    validate(e)
    return e


def slot(e):
    claim = {"upload": e["claim"], "reject": e["claim"], "conflict": e.get("slot_claim")}.get(e["kind"])
    if claim is None:
        return "none"
    parts = [s.encode() for s in (e["registry"], e["ecosystem"], claim, e["project"], e["file"])]
    return hashlib.sha256(b"".join(struct.pack(">I", len(p)) + p for p in parts)).hexdigest()


def encode(e):
    return json.dumps(e, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def normal_project(eco, s):
    if eco not in ("pypi", "npm", "conda", "generic"):
        return None
    if eco == "pypi":
        if not re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]", s):
            return None
        s = re.sub(r"[-_.]+", "-", s).lower()
    if eco == "conda":
        s = re.sub("[A-Z]", lambda m: m[0].lower(), s)
    return s if project(eco, s) else None


def registry_from_url(u):
    m = re.fullmatch(r"(https?)://([^/?#@]*)(/[^?#]*)?", u, re.A | re.I | re.S)
    if not m or not u.isascii():
        return None
    where, path = m[2].lower(), m[3] or ""
    h = re.fullmatch(r"(\[[^\]]*\]|[^:\[]*)(?::(.*))?", where, re.S)
    if not h:
        return None
    name, port = h[1], h[2]
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    if port and port != {"http": "80", "https": "443"}[m[1].lower()]:
        name += ":" + port
    name += path[:-1] if path.endswith("/") else path
    return name if registry(name) else None


def answer(leaf):
    try:
        e = parse(leaf)
    except Syntax as x:
        return f"error syntax {x}"
    except Field as x:
        return f"error field {x}"
    except Version as x:
        return f"error version {x}"
    assert encode(e) == leaf, leaf
    return f"ok {hashlib.sha256(bytes(1) + leaf).hexdigest()} {slot(e)}"


def main(where):
    if where == "-":
        for line in sys.stdin:
            print(answer(bytes.fromhex(line)))
        return 0
    bad = done = 0
    for path in sorted(pathlib.Path(where).glob("*/*.txt")):
        case = {}
        for line in path.read_text("ascii").split("\n"):
            if line and not line.startswith("#"):
                key, _, value = line.partition(":")
                case[key] = value.removeprefix(" ")
        leaf = case["leaf"].encode() if "leaf" in case else bytes.fromhex(case["leaf-hex"])
        want = f"error {case['error']}" if "error" in case else f"ok {case['hash']} {case['slot']}"
        got = answer(leaf)
        done += 1
        if got != want:
            bad += 1
            print(f"{path}: got {got}, want {want}")
    for line in (pathlib.Path(where) / "names.jsonl").read_text("ascii").splitlines():
        case = json.loads(line)
        got = normal_project(case["ecosystem"], case["in"]) if case["op"] == "normal-project" else registry_from_url(case["in"])
        done += 1
        if got != case["out"]:
            bad += 1
            print(f"{case}: got {got}")
    print(f"{done} vectors, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
