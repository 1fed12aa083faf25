"""The configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.policy.facts import directives
from virtirq.cpuset import CpuSet
from virtirq.errors import ConfigError
from virtirq.model import AUTO, NATIVE, Directive, Spread, Word
from virtirq.policy.config import (
    Config,
    GuestVectorsConfig,
    IrqbalanceConfig,
    LibvirtConfig,
    MetricsConfig,
    ProcessesConfig,
    Rule,
    parse_config,
    render_config,
)

ALLOWED = "a directive is auto, native, emulator, local or a CPU list such as 2-5,^3"
KEYS = (
    "allowed are default, spread, restore_on_stop, irqbalance, guest_vectors, processes, metrics,"
    " libvirt, rule"
)
RULE_KEYS = (
    "allowed are directive, guest, owner, source, kind, address, device, class, driver, node,"
    " spread"
)
RULE = '[[rule]]\ndirective = "auto"\n'
OWNER = 'is not a user: a name such as "libvirt-qemu", or a number'
SOURCE = 'is not a source of guests: "libvirt" or "process"'
KIND = 'is not a kind of guest: "machine" or "process"'
CLASS = (
    "is not a class: storage, nvme, network, infiniband, display, multimedia, audio, bridge,"
    " processor, serial-bus, usb, crypto, accelerator, device, or leading hexadecimal digits such"
    " as 0200"
)
ADDRESS = "is not a PCI address such as 0000:82:00.0, or 0000:82:*"
DEVICE = "is not vendor:device in hexadecimal, such as 8086:1572 or 8086:*, or a PCI address"
NODE = "is not a node: 0 to 1023, or -1 for none"
LISTEN = 'is not an address: "127.0.0.1:9191", or ""'
SPREAD = 'is not a spread: "vector" or "mask"'


def parse(*texts: str) -> Config:
    """The configuration of files called 0.toml, 1.toml and so on."""
    return parse_config((f"{number}.toml", text) for number, text in enumerate(texts))


def refusal(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*texts)
    return str(caught.value)


def without_origins(config: Config) -> Config:
    rules = tuple(dataclasses.replace(rule, origin="") for rule in config.rules)
    return dataclasses.replace(config, rules=rules, default_from="")


VALID = {
    "default": ('default = "2-5,^3"', Config(Directive(None, CpuSet([2, 4, 5])))),
    "spread": ('spread = "mask"', Config(spread=Spread.MASK)),
    "restore_on_stop": ("restore_on_stop = true", Config(restore_on_stop=True)),
    "irqbalance": ("[irqbalance]", Config()),
    "irqbalance.cooperate": (
        "irqbalance.cooperate = false",
        Config(irqbalance=IrqbalanceConfig(cooperate=False)),
    ),
    "guest_vectors": ("[guest_vectors]", Config()),
    "guest_vectors.follow": (
        "[guest_vectors]\nfollow = false",
        Config(guest_vectors=GuestVectorsConfig(follow=False)),
    ),
    "processes": ("[processes]", Config()),
    "processes.find": (
        "[processes]\nfind = false",
        Config(processes=ProcessesConfig(find=False)),
    ),
    "metrics": ("[metrics]", Config()),
    "metrics.listen": (
        '[metrics]\nlisten = "[::1]:9191"',
        Config(metrics=MetricsConfig("[::1]:9191")),
    ),
    "metrics.vectors": (
        "[metrics]\nvectors = false",
        Config(metrics=MetricsConfig(vectors=False)),
    ),
    "libvirt": ("libvirt = {}", Config()),
    "libvirt.uri": ('[libvirt]\nuri = "x:///y"', Config(libvirt=LibvirtConfig("x:///y"))),
    "rule": (RULE, Config(rules=(Rule(AUTO),))),
    "rule.directive": ('[[rule]]\ndirective = "native"', Config(rules=(Rule(NATIVE),))),
    "rule.guest": (f'{RULE}guest = "db[0-9]*"', Config(rules=(Rule(AUTO, guest="db[0-9]*"),))),
    "rule.owner": (f"{RULE}owner = 107", Config(rules=(Rule(AUTO, owner=107),))),
    "rule.source": (f'{RULE}source = "process"', Config(rules=(Rule(AUTO, source="process"),))),
    "rule.address": (
        f'{RULE}address = "0000:82:*"',
        Config(rules=(Rule(AUTO, address="0000:82:*"),)),
    ),
    "rule.address (as libvirt has it)": (
        f'{RULE}address = "pci_0000_82_00_0"',
        Config(rules=(Rule(AUTO, address="0000:82:00.0"),)),
    ),
    "rule.device (an address)": (
        f'{RULE}device = "82:00.0"',
        Config(rules=(Rule(AUTO, device="0000:82:00.0"),)),
    ),
    "rule.kind": (f'{RULE}kind = "process"', Config(rules=(Rule(AUTO, kind="process"),))),
    "rule.device": (f'{RULE}device = "8086:*"', Config(rules=(Rule(AUTO, device="8086:*"),))),
    "rule.class": (f'{RULE}class = "0200"', Config(rules=(Rule(AUTO, class_="0200"),))),
    "rule.driver": (f'{RULE}driver = "vfio*"', Config(rules=(Rule(AUTO, driver="vfio*"),))),
    "rule.node": (f"{RULE}node = -1", Config(rules=(Rule(AUTO, node=-1),))),
    "rule.spread": (
        f'{RULE}spread = "vector"',
        Config(rules=(Rule(AUTO, spread=Spread.VECTOR),)),
    ),
}


@pytest.mark.parametrize(("text", "config"), VALID.values(), ids=VALID)
def test_each_key(text: str, config: Config) -> None:
    assert without_origins(parse(text)) == without_origins(config)


REFUSED = [
    # The whole file.
    ("default", "0.toml: not TOML: Expected '=' after a key in a key/value pair (at end of docu"),
    ('default = "auto"\ndefault = "auto"', "0.toml: not TOML: Cannot overwrite a value"),
    ("a = " + "[" * 5000, "0.toml: not TOML: nested too deeply"),
    ("a = " + "9" * 5000, "0.toml: not TOML: Exceeds the limit (4300 digits)"),
    # Keys that are not there.
    ("defualt = 1", f"0.toml: defualt: unknown key; {KEYS}"),
    ("[default_from]", f"0.toml: default_from: unknown key; {KEYS}"),
    ("rules = []", f"0.toml: rules: unknown key; {KEYS}"),
    ("b = 1\na = 1", f"0.toml: a: unknown key; {KEYS}"),
    ('"a\\nb" = 1', f"0.toml: 'a\\nb': unknown key; {KEYS}"),
    ('"\\u001b[2J" = 1', f"0.toml: '\\x1b[2J': unknown key; {KEYS}"),
    ('"" = 1', f"0.toml: '': unknown key; {KEYS}"),
    (f"{RULE}guests = 1", f"0.toml: rule[1].guests: unknown key; {RULE_KEYS}"),
    (f'{RULE}class_ = "usb"', f"0.toml: rule[1].class_: unknown key; {RULE_KEYS}"),
    (f'{RULE}origin = "me"', f"0.toml: rule[1].origin: unknown key; {RULE_KEYS}"),
    # default
    ("default = 5", "0.toml: default: 5 is not a directive in quotes"),
    ("default = true", "0.toml: default: True is not a directive in quotes"),
    ("default = ['auto']", "0.toml: default: ['auto'] is not a directive in quotes"),
    ("[default]\na = 1", "0.toml: default: {'a': 1} is not a directive in quotes"),
    ("default." + "a." * 3000 + "a = 1", "0.toml: default: this dict is not a directive in q"),
    ('default = "atuo"', f"0.toml: default: 'atuo' is not a directive ({ALLOWED})"),
    ('default = "Auto"', f"0.toml: default: 'Auto' is not a directive ({ALLOWED})"),
    ('default = ""', f"0.toml: default: '' leaves no CPU ({ALLOWED})"),
    ('default = "3,^3"', f"0.toml: default: '3,^3' leaves no CPU ({ALLOWED})"),
    ('default = "5-2"', f"0.toml: default: range '5-2' in '5-2' runs backwards ({ALLOWED})"),
    ('default = "16384"', f"0.toml: default: CPU 16384 is outside 0-16383 ({ALLOWED})"),
    ('default = "٣"', f"0.toml: default: '٣' is not a CPU, a range of CPUs or ^CPU ({ALLOWED})"),
    # spread
    ('spread = "wide"', f"0.toml: spread: 'wide' {SPREAD}"),
    ("spread = 1", f"0.toml: spread: 1 {SPREAD}"),
    ("spread = ['mask']", f"0.toml: spread: ['mask'] {SPREAD}"),
    # rule
    ("rule = 1", "0.toml: rule: is not a list of tables: write [[rule]]"),
    ('[rule]\ndirective = "auto"', "0.toml: rule: is not a list of tables: write [[rule]]"),
    ("rule = [1]", "0.toml: rule[1]: 1 is not a table"),
    ("[[rule]]", "0.toml: rule[1]: directive is missing"),
    (f"{RULE}{RULE}[[rule]]\nguest = 'a'", "0.toml: rule[3]: directive is missing"),
    ("[[rule]]\ndirective = 2", "0.toml: rule[1].directive: 2 is not a directive in quotes"),
    (f"{RULE}guest = 1", "0.toml: rule[1].guest: 1 is not a string"),
    (f"{RULE}guest = 0x{'f' * 6000}", "0.toml: rule[1].guest: this int is not a string"),
    *(
        (f"{RULE}owner = {value}", f"0.toml: rule[1].owner: {shown} {OWNER}")
        for value, shown in (
            ("-1", "-1"),
            ("4294967295", "4294967295"),
            ("true", "True"),
            ("''", "''"),
            ("'a b'", "'a b'"),
            ("'a\\nb'", r"'a\\nb'"),
            ("[1]", "[1]"),
        )
    ),
    (f"{RULE}source = 'virsh'", f"0.toml: rule[1].source: 'virsh' {SOURCE}"),
    (f"{RULE}address = 1", f"0.toml: rule[1].address: 1 {ADDRESS}"),
    (f"{RULE}address = '82'", f"0.toml: rule[1].address: '82' {ADDRESS}"),
    (f"{RULE}address = '82:0.0'", f"0.toml: rule[1].address: '82:0.0' {ADDRESS}"),
    (f"{RULE}address = '82:20.0'", f"0.toml: rule[1].address: '82:20.0' {ADDRESS}"),
    (f"{RULE}address = 'web*'", f"0.toml: rule[1].address: 'web*' {ADDRESS}"),
    (f"{RULE}device = '0000:82:00.8'", f"0.toml: rule[1].device: '0000:82:00.8' {DEVICE}"),
    (f"{RULE}address = '0x82:00'", f"0.toml: rule[1].address: '0x82:00' {ADDRESS}"),
    (f"{RULE}kind = 1", f"0.toml: rule[1].kind: 1 {KIND}"),
    (f"{RULE}kind = 'vm'", f"0.toml: rule[1].kind: 'vm' {KIND}"),
    (f"{RULE}kind = 'Machine'", f"0.toml: rule[1].kind: 'Machine' {KIND}"),
    (f"{RULE}kind = 'machine\\n'", f"0.toml: rule[1].kind: 'machine\\\\n' {KIND}"),
    (f"{RULE}kind = ''", f"0.toml: rule[1].kind: '' {KIND}"),
    (f"{RULE}device = 1", f"0.toml: rule[1].device: 1 {DEVICE}"),
    (f"{RULE}device = '8086'", f"0.toml: rule[1].device: '8086' {DEVICE}"),
    (f"{RULE}device = '0x8086:0x1572'", f"0.toml: rule[1].device: '0x8086:0x1572' {DEVICE}"),
    (f"{RULE}class = 200", f"0.toml: rule[1].class: 200 {CLASS}"),
    (f"{RULE}class = ''", f"0.toml: rule[1].class: '' {CLASS}"),
    (f"{RULE}class = '0x0200'", f"0.toml: rule[1].class: '0x0200' {CLASS}"),
    (f"{RULE}class = 'netwrok'", f"0.toml: rule[1].class: 'netwrok' {CLASS}"),
    (f"{RULE}class = 'Network'", f"0.toml: rule[1].class: 'Network' {CLASS}"),
    (f"{RULE}driver = false", "0.toml: rule[1].driver: False is not a string"),
    (f"{RULE}node = '1'", f"0.toml: rule[1].node: '1' {NODE}"),
    (f"{RULE}node = true", f"0.toml: rule[1].node: True {NODE}"),
    (f"{RULE}node = 1.0", f"0.toml: rule[1].node: 1.0 {NODE}"),
    (f"{RULE}node = -2", f"0.toml: rule[1].node: -2 {NODE}"),
    (f"{RULE}node = 0x{'f' * 6000}", f"0.toml: rule[1].node: this int {NODE}"),
    (f"{RULE}spread = 'x'", f"0.toml: rule[1].spread: 'x' {SPREAD}"),
    # The daemon's.
    ("restore_on_stop = 1", "0.toml: restore_on_stop: 1 is not true or false"),
    ("irqbalance = true", "0.toml: irqbalance: True is not a table"),
    ("[irqbalance]\ncooperate = 'y'", "0.toml: irqbalance.cooperate: 'y' is not true or false"),
    ("[irqbalance]\nban = 1", "0.toml: irqbalance.ban: unknown key; allowed are cooperate"),
    ("guest_vectors = 1", "0.toml: guest_vectors: 1 is not a table"),
    ("guest_vectors.follow = 1", "0.toml: guest_vectors.follow: 1 is not true or false"),
    (
        "[guest_vectors]\nfolow = true",
        "0.toml: guest_vectors.folow: unknown key; allowed are follow",
    ),
    ("processes = false", "0.toml: processes: False is not a table"),
    ("processes.find = 'no'", "0.toml: processes.find: 'no' is not true or false"),
    ("[processes]\nfinds = 1", "0.toml: processes.finds: unknown key; allowed are find"),
    ("metrics = 9191", "0.toml: metrics: 9191 is not a table"),
    ("metrics.listen = 9191", f"0.toml: metrics.listen: 9191 {LISTEN}"),
    ("metrics.vectors = 0", "0.toml: metrics.vectors: 0 is not true or false"),
    ("[[libvirt]]", "0.toml: libvirt: [{}] is not a table"),
    ("libvirt.uri = 1", "0.toml: libvirt.uri: 1 is not a string"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:40] for text, _ in REFUSED])
def test_each_refusal(text: str, message: str) -> None:
    told = refusal(text)
    assert told.startswith(message)
    if not message.startswith(("0.toml: not TOML", "0.toml: default: this")):
        assert told == message
    assert told.isprintable()


def test_every_key_is_exercised() -> None:
    """A new setting needs a valid value and a wrong one in the tables above."""
    keys = {
        prefix + each.metadata.get("key", each.name)
        for prefix, cls in (
            ("", Config),
            ("irqbalance.", IrqbalanceConfig),
            ("guest_vectors.", GuestVectorsConfig),
            ("processes.", ProcessesConfig),
            ("metrics.", MetricsConfig),
            ("libvirt.", LibvirtConfig),
            ("rule.", Rule),
        )
        for each in dataclasses.fields(cls)
        if each.metadata.get("key", each.name) is not None
    }
    assert {each.split(" ")[0] for each in VALID} == keys
    refused = {message.split(": ")[1].replace("[1]", "") for _, message in REFUSED}
    assert keys <= refused


def test_all_problems_are_told_at_once() -> None:
    """Of every file: who mends one is not to run into the next."""
    text = 'default = 1\nspread = 2\nnope = 3\n[[rule]]\nnode = 5000\ndrivr = "x"\ndirective = "4"'
    with pytest.raises(ConfigError) as caught:
        parse_config([("a.toml", text), ("b.toml", "="), ("c.toml", "[metrics]\nlisten = 5")])
    problems = caught.value.problems
    assert [each.split(": ")[:2] for each in problems[:5]] == [
        ["a.toml", "default"],
        ["a.toml", "spread"],
        ["a.toml", "rule[1].node"],
        ["a.toml", "rule[1].drivr"],
        ["a.toml", "nope"],
    ]
    assert problems[5].startswith("b.toml: not TOML")
    assert problems[6].startswith("c.toml: metrics.listen")
    assert str(caught.value) == problems[0]
    assert caught.value.hint == "'virtirq config check' has 6 more"


def test_the_first_of_several_problems_is_told() -> None:
    assert refusal('default = 1\nspread = 2\nnope = 3\n[[rule]]\nguest = "x"') == (
        "0.toml: default: 1 is not a directive in quotes"
    )


def test_nothing_is_the_default() -> None:
    assert parse() == parse("") == parse("", "# nothing") == Config()
    assert (Config().default, Config().default_from) == (AUTO, "built-in default")


def test_later_files_replace_values_and_add_rules() -> None:
    config = parse(
        'default = "native"\nspread = "mask"\n' + RULE,
        '[[rule]]\ndirective = "1"\n[[rule]]\ndirective = "2"',
        'default = "local"',
        "rule = []",
    )
    assert (config.default, config.default_from) == (Directive(Word.LOCAL), "default of 2.toml")
    assert config.spread is Spread.MASK
    assert [(str(rule.directive), rule.origin) for rule in config.rules] == [
        ("auto", "rule 1 of 0.toml"),
        ("1", "rule 1 of 1.toml"),
        ("2", "rule 2 of 1.toml"),
    ]


def test_tables_of_later_files_replace_key_by_key() -> None:
    config = parse('[metrics]\nlisten = ":9191"', "[metrics]", "restore_on_stop = true")
    assert config.metrics.listen == ":9191"
    assert parse('[metrics]\nlisten = ":9191"', 'metrics.listen = ""').metrics.listen == ""


def test_a_later_file_may_set_the_default_again() -> None:
    config = parse('default = "native"', 'default = "auto"')
    assert (config.default, config.default_from) == (AUTO, "default of 1.toml")


def test_the_file_at_fault_is_named() -> None:
    assert refusal('default = "auto"', "", "rule = 5").startswith("2.toml: rule: ")
    assert refusal(RULE, "[[rule]]").startswith("1.toml: rule[1]: ")


REST = (
    "restore_on_stop = false",
    "",
    "[irqbalance]",
    "cooperate = true",
    "",
    "[guest_vectors]",
    "follow = true",
    "",
    "[processes]",
    "find = true",
    "",
    "[metrics]",
    'listen = ""',
    "vectors = true",
    "",
    "[libvirt]",
    'uri = ""',
)


def test_render_shows_where_things_come_from() -> None:
    assert render_config(Config()).splitlines() == [
        'default = "auto"  # built-in default',
        '# spread: "vector" for words, "mask" for a CPU list',
        *REST,
    ]
    text = 'default = "2-5,^3"\nspread = "mask"\n[[rule]]\ndirective = "native"\nnode = 1\n'
    assert render_config(parse(text + 'class = "usb"\nspread = "vector"')).splitlines() == [
        'default = "2,4-5"  # default of 0.toml',
        'spread = "mask"',
        *REST,
        "",
        "[[rule]]  # rule 1 of 0.toml",
        'directive = "native"',
        'class = "usb"',
        "node = 1",
        'spread = "vector"',
    ]


rules = st.builds(
    Rule,
    directives(range(20)),
    guest=st.none() | st.text(),
    owner=st.none() | st.integers(0, 2**32 - 2) | st.sampled_from(["root", "a_b-c.d$"]),
    source=st.none() | st.sampled_from(["libvirt", "process"]),
    kind=st.none() | st.sampled_from(["machine", "process"]),
    device=st.none() | st.from_regex(r"\A[0-9a-f?*]+:[0-9a-f*]+\Z"),
    class_=st.none() | st.from_regex(r"\A([0-9a-f]{1,6}|usb|serial-bus|device)\Z"),
    driver=st.none() | st.text(),
    node=st.none() | st.integers(-1, 1023),
    spread=st.none() | st.sampled_from(Spread),
    origin=st.text(),
)
any_config = st.builds(
    Config,
    directives(range(20)),
    spread=st.none() | st.sampled_from(Spread),
    restore_on_stop=st.booleans(),
    irqbalance=st.builds(IrqbalanceConfig),
    guest_vectors=st.builds(GuestVectorsConfig),
    processes=st.builds(ProcessesConfig, st.booleans()),
    metrics=st.builds(
        MetricsConfig, st.sampled_from(["", "127.0.0.1:9191", "[::1]:1"]), st.booleans()
    ),
    libvirt=st.builds(LibvirtConfig, st.text()),
    rules=st.lists(rules, max_size=3).map(tuple),
    default_from=st.text(),
)


@settings(max_examples=200, deadline=None)
@given(any_config)
@example(Config(rules=(Rule(AUTO, guest='a"b\\', driver="\x7f\n\t\x00\u2028"),)))
@example(Config(default_from="default of a\nspread = 1", rules=(Rule(AUTO, origin="\r"),)))
def test_what_is_rendered_parses_back(config: Config) -> None:
    shown = render_config(config)
    assert without_origins(parse(shown)) == without_origins(config)
    assert all(line.isprintable() for line in shown.split("\n"))


def test_what_would_steer_a_terminal_is_shown_escaped() -> None:
    rule = Rule(AUTO, driver="vfio\x85\u202e-*")
    assert 'driver = "vfio\\U00000085\\U0000202e-*"' in render_config(Config(rules=(rule,)))


names = st.sampled_from(
    [
        "default",
        "spread",
        "rule",
        "metrics",
        "listen",
        "libvirt",
        "guest",
        "node",
        "class",
        "x",
        '"\\n"',
    ]
)
values = st.recursive(
    st.sampled_from(['"auto"', "'1-2'", "1", "-1", "true", "nan", "1979-05-27", "[]", '"mask"']),
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda them: f"[{', '.join(them)}]")
        | st.tuples(names, inner).map(lambda pair: f"{{{pair[0]} = {pair[1]}}}")
    ),
    max_leaves=4,
)
lines = (
    st.sampled_from(["[[rule]]", 'directive = "auto"', "[rule]", "[spread]", "[[default]]"])
    | st.tuples(names, values).map(" = ".join)
    | st.text(max_size=12)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=5).map("\n".join))
def test_hostile_files_give_a_config_or_one_line(text: str) -> None:
    try:
        config = parse(text)
    except ConfigError as error:
        told = str(error)
    else:
        assert without_origins(parse(render_config(config))) == without_origins(config)
        return
    assert told.startswith("0.toml: ")
    assert told.isprintable()


def test_users_are_looked_up() -> None:
    text = "".join(f'[[rule]]\nowner = {each}\ndirective = "auto"\n' for each in ("'qemu'", "5"))
    users = {"qemu": 107}
    known = parse_config([("a.toml", text)], users.get)
    assert [rule.owner for rule in known.rules] == [107, 5]
    with pytest.raises(ConfigError, match=r"^a.toml: rule\[1\].owner: there is no user qemu here$"):
        parse_config([("a.toml", text)], lambda _: None)
