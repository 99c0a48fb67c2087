//! Programs that are put together at random from all that the language has, run one after the other in a process of
//! their own under a limit on its memory. None may end the process, hold more than its limit, last, or leave anything
//! behind. `ANGARIUM_SEED` draws others.

use std::{
    env, fs,
    process::{Command, exit},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use fastrand::Rng;

use super::{facts::MessageFacts, *};
use crate::allocator;
use angarium_domain::seed;

/// Programs of one test.
const PROGRAMS: usize = 600;
/// As for cases: the limits on operations and memory must hold without that on time.
const WITHOUT_HASTE: Duration = Duration::from_secs(2);
/// A program that has not ended by then does not end.
const NEVER: Duration = Duration::from_secs(120);
/// A worker's stack.
const STACK: usize = 2 * 1024 * 1024;
/// The bytes that the process may have reserved, and have had resident, whatever ran in it.
const RESERVED: u64 = 8 * 1024 * 1024 * 1024;
const RESIDENT: u64 = 160 * 1024 * 1024;
/// The bytes that two runs of a program may leave: their resolved functions.
const LEFT: isize = 32 * 1024;
const CHILD: &str = "ANGARIUM_HOSTILE_CHILD";

/// Programs that this process has begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// The first values of variables.
const VALUES: &[&str] = &[
    "0",
    "1",
    "-1",
    "1.5",
    "9223372036854775807",
    "\"\"",
    "\"x\"",
    "'x'",
    "()",
    "true",
    "[]",
    "[1, 2, 3]",
    "[[1], #{}]",
    "#{}",
    "#{a: 1, map: 2}",
    "0..3",
    "0..9223372036854775807",
    "|x| x",
    "|| 1",
    "|x, y| x == y",
    "Fn(\"f\")",
    "global::C",
    "global::T",
    "message",
    "\"x\".chars()",
    "range(0, 9, 2)",
    "1.bits()",
];

/// Statements over the variables `A`, `B` and `C`, and blocks `{}` of other statements.
const STATEMENTS: &[&str] = &[
    "A = B;",
    "A = [B];",
    "A = [A, B, C];",
    "A = #{a: B};",
    "A = #{a: A, b: B};",
    "A += B;",
    "A = A + B;",
    "A = B + A;",
    "A *= 2;",
    "A = A ** 9;",
    "A = `${A}${B}`;",
    "A = `${A}`.to_upper();",
    "A[0] = B;",
    "A.a = B;",
    "A[`${B}`] = C;",
    "A.b.c = B;",
    "A = A.a;",
    "A = A[0];",
    "A = A?.a ?? B;",
    "A.push(B);",
    "A.insert(0, B);",
    "A.append(B);",
    "A.pad(1000, B);",
    "A.pad(60000, \"x\");",
    "A.pad(1024, A);",
    "A.set(\"k\", B);",
    "A.set(0, B);",
    "A.mixin(B);",
    "A.fill_with(B);",
    "A = A.keys();",
    "A = A.values();",
    "A = A.to_json();",
    "A = A.to_string();",
    "A = A.to_debug();",
    "A = A.split(\"\");",
    "A = A.split(\"x\");",
    "A = A.to_chars();",
    "A.replace(\"x\", B);",
    "A.replace(\"x\", \"xx\");",
    "A = A.words();",
    "A = [A, A].join(A);",
    "A = A.extract(0, 2);",
    "A.splice(0, 1, B);",
    "A = A.chop(3);",
    "A.crop(1);",
    "A = A.zip(B, |x, y| [x, y]);",
    "A = A.map(|x| B);",
    "A = A.map(|x| [x, A]);",
    "A = A.filter(|x| B);",
    "A = A.reduce(|x, y| [x, y]);",
    "A = A.reduce(|x, y| x + y, B);",
    "A = A.find_map(|x| [x]);",
    "A.for_each(|x| B = x);",
    "A.for_each(|| B.push(this));",
    "A.dedup(|x, y| { B = [B]; true });",
    "A.sort(|x, y| { {} 1 });",
    "A.sort();",
    "A = A.order(|x, y| B);",
    "A = A.drain(|x| B);",
    "A.retain(|x| true);",
    "A = A.index_of(|x| x == B);",
    "A = A.contains(B);",
    "A = B in A;",
    "A = A == B;",
    "A = A.sorted_by(\"a\");",
    "A = A.pluck(\"a\");",
    "A = || B;",
    "A = || A;",
    "A = || { A = B; B = A; };",
    "A = |x| B.call(x);",
    "A = |x| x.call(A, B);",
    "let B = A; A = || B;",
    "A = #{a: || B, f: A};",
    "B = [A, || [A, B, C]];",
    "A = A.call();",
    "A = A.call(B);",
    "A = A.call(A, B);",
    "A = call(A, B);",
    "A.f(B);",
    "A.a();",
    "A = f(A);",
    "f(f(A));",
    "A = f!(A);",
    "A = g(A, B);",
    "A = Fn(`f${\"\"}`);",
    "A = Fn(\"g\").call(A, B);",
    "const K = A; A = || K;",
    "A = take(A);",
    "throw A;",
    "throw [A, B];",
    "return A;",
    "try { {} } catch (e) { A = e; }",
    "try { throw A; } catch (e) { A = [e, e]; }",
    "try { loop { {} } } catch { }",
    "loop { {} }",
    "while A != B { {} }",
    "for x in A { {} }",
    "for (x, n) in B { A = x; {} }",
    "for n in 0..1000 { {} }",
    "for n in 0..9 { {} {} }",
    "do { {} } until A == B;",
    "if A == B { {} } else { {} }",
    "switch A { 1 => B, \"x\" => { {} }, 0..9 => C, _ => { {} } }",
    "switch [A, B] { [] => 1, _ => { {} } }",
    "print(A);",
    "debug(A);",
    "debug([A, #{a: B}]);",
    "A = is_shared(B);",
    "A = type_of(B);",
    "A = A.len();",
    "A = A.name;",
    "A = A.start;",
    "A = sha(A);",
    "A = A.like(`*${B}*`);",
    "A = variant(\"k\", \"s\", A);",
    "A = bucket(A, A);",
    "A = digits(A);",
    "A = A.sum();",
    "A = number(A);",
    "A = or_else(A, B);",
    "A = refuse(A);",
    "A = hold_until(A);",
    "A = retry_after(A);",
    "A = A.to_hex();",
    "A = parse_float(A);",
    "A = A.trim();",
    "A.clear();",
    "A = A.index_of(B);",
    "A = A.sub_string(0, 9);",
    "A = A - B;",
    "A.remove(B);",
    "A.truncate(1);",
    "A.reverse();",
    "A = A.split_rev(\"\", 9);",
    "for n in 0..1000 { A[B + n] = C; }",
    "for n in 0..1000 { A[`${B}${n}`] = || C; }",
    "for n in 0..1000 { A.push(`${B}${n}`); }",
    "for n in 0..1000 { let it = B + n; A.push(|| it); }",
];

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn statement(rng: &mut Rng, depth: usize) -> String {
    let mut text = String::new();
    let template = loop {
        let template = STATEMENTS[rng.usize(..STATEMENTS.len())];
        if depth < 4 || !template.contains("{}") {
            break template;
        }
    };
    let chosen = [(); 3].map(|()| NAMES[rng.usize(..NAMES.len())]);
    let mut parts = template.split("{}").peekable();
    while let Some(part) = parts.next() {
        text += part;
        if parts.peek().is_some() {
            for _ in 0..rng.usize(1..4) {
                text += &statement(rng, depth + 1);
            }
        }
    }
    // Only letters that stand alone are variables.
    let letters = [("A", chosen[0]), ("B", chosen[1]), ("C", chosen[2])];
    let text = letters.iter().fold(text, |text, (letter, name)| alone(&text, letter, name));
    // Most would be the last one otherwise; what declares something would not be seen by those after it.
    if template.contains("let ") || template.contains("const ") {
        text
    } else {
        format!("try {{ {text} }} catch {{ }}")
    }
}

fn alone(text: &str, letter: &str, name: &str) -> String {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(letter) {
        let (before, after) = (&rest[..at], &rest[at + letter.len()..]);
        let stands_alone = !is_word(before.chars().next_back()) && !is_word(after.chars().next());
        done += before;
        done += if stands_alone { name } else { letter };
        rest = after;
    }
    done + rest
}

fn program(rng: &mut Rng) -> String {
    let mut value = || VALUES[rng.usize(..VALUES.len())];
    let constant = ["[]", "#{a: 1}", "\"x\"", "|x| x", "1"][value().len() % 5];
    let variables: String = NAMES.iter().map(|name| format!("let {name} = {};\n", value())).collect();
    let mut body = |times: usize| (0..rng.usize(1..=times)).map(|_| statement(rng, 0) + "\n").collect::<String>();
    let (function, whole) = (body(2), body(12));
    let end = ["", "a", "throw [a, b, c];", "#{action: a, attributes: #{b: b}}", "refuse(`${a}`)", "#{attributes: a}"];
    let end = end[rng.usize(..end.len())];
    format!(
        "const C = {constant};
        const T = {{ let text = \"\"; text.pad(60000, \"x\"); text }};
        fn f(a) {{ let b = a; let c = [a]; let d = 1; let e = || a; {function} b }}
        fn g(a, b) {{ f(a) }}
        fn admit(message) {{ {variables} {whole} {end} }}"
    )
}

/// The most that this process ever had resident, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|it| it.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Runs all programs of a generator. Each is written down before it runs, so that the parent can tell which was the last.
fn run_all(rng: &mut Rng, last: &str) {
    let (mut compiled, mut limits_met) = (0, Vec::new());
    for nth in 0..PROGRAMS {
        let source = program(rng);
        fs::write(last, &source).unwrap();
        BEGUN.store(nth, Ordering::Relaxed);
        let Ok(script) = Script::compile("hostile.rhai", &source, &Modules::none()) else { continue };
        compiled += 1;
        let ask = |script: &Script| script.admit(&MessageFacts::default(), &Given::default());
        if let Err(ScriptFault { kind: ScriptFaultKind::Limit(limit), .. }) =
            ask(&script.clone().allowing(WITHOUT_HASTE))
        {
            limits_met.push(limit);
        }
        let before = allocator::balance();
        (0..2).for_each(|_| drop(ask(&script)));
        let left = allocator::balance() - before;
        assert!(left < LEFT, "{left} bytes are left");
        assert!(peak() < RESIDENT, "{} bytes", peak());
    }
    let met = |limit| limits_met.iter().filter(|it| **it == limit).count();
    println!(
        "{compiled} compiled; {} met the limit on memory, {} that on sizes",
        met(ScriptLimit::Memory),
        met(ScriptLimit::Size)
    );
    assert!(compiled > PROGRAMS / 2, "{compiled} compile");
    assert!(met(ScriptLimit::Size) > 0 && met(ScriptLimit::Operations) > 0, "{limits_met:?}");
}

fn end_what_does_not_end() {
    loop {
        let begun = BEGUN.load(Ordering::Relaxed);
        thread::sleep(NEVER);
        if BEGUN.load(Ordering::Relaxed) == begun {
            eprintln!("it does not end");
            exit(1);
        }
    }
}

#[test]
fn programs_at_random_end_within_their_memory() {
    if let Ok(last) = env::var(CHILD) {
        rlimit::setrlimit(rlimit::Resource::AS, RESERVED, RESERVED).unwrap();
        thread::spawn(end_what_does_not_end);
        let worker = thread::Builder::new().stack_size(STACK).spawn(move || run_all(&mut seed::rng(), &last)).unwrap();
        return worker.join().unwrap();
    }
    let last = tempfile::NamedTempFile::new().unwrap();
    let this = concat!(module_path!(), "::programs_at_random_end_within_their_memory");
    let this = this.split_once("::").unwrap().1;
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture"])
        .env(CHILD, last.path())
        .output()
        .unwrap();
    let program = fs::read_to_string(last.path()).unwrap();
    let [said, complained] = [&child.stdout, &child.stderr].map(|it| String::from_utf8_lossy(it));
    assert!(child.status.success(), "{}: {said}\n{complained}\nwith\n{program}", child.status);
}
