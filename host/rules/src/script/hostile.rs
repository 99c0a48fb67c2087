//! The known ways round the limits of the language: each must end in a fault, soon, and leave the
//! process as it was.

use std::time::{Duration, Instant};

use super::{facts::MessageFacts, *};
use crate::allocator;

/// Generous beside [`limits::TIME`]: the machine may be busy and the build unoptimised.
const SOON: Duration = Duration::from_secs(2);

fn fault_of(source: &str) -> ScriptFault {
    let script =
        Script::compile("hostile.rhai", source, &Modules::none()).unwrap_or_else(|error| panic!("{error}\n{source}"));
    let begun = Instant::now();
    let result = script.admit(&MessageFacts::default(), &Given::default());
    assert!(begun.elapsed() < SOON, "{:?} for {source}", begun.elapsed());
    result.expect_err(source)
}

fn limit_of(body: &str) -> ScriptLimit {
    match fault_of(&format!("fn admit(message) {{ {body} }}")) {
        ScriptFault { kind: ScriptFaultKind::Limit(limit), .. } => limit,
        fault => panic!("{fault} is no limit: {body}"),
    }
}

/// It is refused as a source, or has no such function when it runs.
fn is_not_there(source: &str) {
    let Ok(script) = Script::compile("hostile.rhai", source, &Modules::none()) else { return };
    let fault = script.allowing(SOON).admit(&MessageFacts::default(), &Given::default()).expect_err(source);
    assert_eq!(fault.kind, ScriptFaultKind::Thrown, "{fault}");
}

#[test]
fn what_meets_the_machine_is_not_there() {
    for call in [
        "sleep(1)",
        "sleep(1.0)",
        "eval(\"1\")",
        "timestamp()",
        "rand()",
        "open_file(\"/etc/passwd\")",
        "exit()",
        "parse_json(\"{}\")",
        "blob(10)",
        "get_fn_metadata_list()",
        "Fn(\"sleep\").call(1)",
        "Fn(\"eval\").call(\"1\")",
        "Fn(\"timestamp\").call()",
        "[1].for_each(Fn(\"sleep\"))",
        "env(\"HOME\")",
    ] {
        let begun = Instant::now();
        is_not_there(&format!("fn admit(message) {{ {call} }}"));
        assert!(begun.elapsed() < Duration::from_millis(900), "{call} slept");
    }
}

#[test]
fn nothing_is_imported_from_a_path() {
    for path in ["/etc/passwd", "../rules/quiet-hours", "quiet-hours", "./x.rhai", "file:///etc/passwd", ""] {
        let source = format!("import \"{path}\" as it; fn admit(message) {{ () }}");
        let error = Script::compile("hostile.rhai", &source, &Modules::none()).expect_err(path);
        assert!(error.reason.contains("odule"), "{error}");
        is_not_there(&format!("fn admit(message) {{ import \"{path}\" as it; () }}"));
    }
    is_not_there("fn admit(message) { let path = \"/etc/\" + \"passwd\"; import path as it; () }");
}

#[test]
fn endless_loops_end() {
    for body in [
        "loop {}",
        "while true { }",
        "do { } while true",
        "let x = 0; loop { x += 1; }",
        "for n in 0..9223372036854775807 {}",
        "for n in range(0, 9223372036854775807, 1) { let x = n; }",
        "let x = 0; while x in 0..10 { x = 1; }",
        "loop { try { throw 1; } catch { } }",
        "try { loop {} } catch { } ()",
        "loop { try { loop {} } catch (error) { continue; } }",
        "let f = || { loop {} }; f.call()",
        "let n = 0; let f = || { loop { n += 1; } }; try { f.call() } catch {} allow()",
    ] {
        let limit = limit_of(body);
        assert!(matches!(limit, ScriptLimit::Operations | ScriptLimit::Time), "{limit:?}: {body}");
    }
}

#[test]
fn callbacks_of_native_functions_end() {
    let many = "let list = []; for n in 0..900 { list.push(n); }";
    for body in [
        "let a = [3, 1, 2]; a.sort(|x, y| { loop {} }); ()",
        "let a = [3, 1, 2]; a.sort_by(|x, y| { try { loop {} } catch { } 1 }); allow()",
        "let a = [3, 1, 2]; a.order(|x, y| { while true {} 0 })",
        "[1, 2].map(|x| { loop {} })",
        "[1, 2].filter(|x| { loop {} })",
        "[1, 2].reduce(|sum, x| { loop {} }, 0)",
        "[1, 2].reduce_rev(|sum, x| { loop {} }, 0)",
        "[1, 2].some(|x| { loop {} })",
        "[1, 2].all(|x| { loop {} })",
        "[1, 2].find(|x| { loop {} })",
        "[1, 2].find_map(|x| { loop {} })",
        "[1, 2].index_of(|x| { loop {} })",
        "[1, 2].for_each(|| { loop {} })",
        "let a = [1, 1]; a.dedup(|x, y| { loop {} }); ()",
        "let a = [1, 2]; a.drain(|x| { loop {} })",
        "let a = [1, 2]; a.retain(|x| { loop {} })",
        "[1, 2].zip([3, 4], |x, y| { loop {} })",
        "#{a: 1}.map(|x| { loop {} })",
        "#{a: 1}.filter(|x| { loop {} })",
    ] {
        let limit = limit_of(body);
        assert!(matches!(limit, ScriptLimit::Operations | ScriptLimit::Time), "{limit:?}: {body}");
    }
    for body in [
        format!("{many} list.sort(|x, y| {{ for n in 0..1000 {{}} 1 }}); allow()"),
        format!("{many} list.dedup(|x, y| {{ for n in 0..1000 {{}} false }}); allow()"),
        format!(
            "{many} let more = list; let most = list; list.map(|x| more.map(|y| most.map(|z| x + y + z))); allow()"
        ),
    ] {
        let limit = limit_of(&body);
        assert!(matches!(limit, ScriptLimit::Operations | ScriptLimit::Time | ScriptLimit::Size), "{limit:?}: {body}");
    }
}

#[test]
fn a_sort_that_contradicts_itself_is_no_more_than_a_strange_order() {
    let source = "fn admit(message) { let list = []; for n in 0..200 { list.push(n % 7); }
        let turn = 0; list.sort(|x, y| { turn += 1; if turn % 2 == 0 { 1 } else { -1 } });
        if list.len() == 200 { allow() } else { refuse(\"lost\") } }";
    let script = Script::compile("hostile.rhai", source, &Modules::none()).unwrap().allowing(SOON);
    assert_eq!(script.admit(&MessageFacts::default(), &Given::default()), Ok(AdmitAnswer::default()));
}

#[test]
fn nothing_grows_without_end() {
    for body in [
        "let x = \"x\"; loop { x += x; }",
        "let x = \"x\"; loop { x = x + x; }",
        "let x = \"x\"; loop { x = `${x}${x}`; }",
        "let x = \"\"; x.pad(1000000000, \"x\"); x",
        "let x = \"\"; x.pad(60000, \"x\"); x.replace(\"x\", x); x",
        "let x = []; x.pad(1000000000, 0); x",
        "let x = [1]; loop { x += x; }",
        "let x = []; loop { x.push(1); }",
        "let x = []; loop { x.push(\"0123456789abcdef\"); }",
        "let x = [[]]; loop { x.push(x); }",
        "let x = [1, 2, 3]; loop { x.append(x); }",
        "let x = [1, 2, 3]; loop { x.insert(0, x); }",
        "let x = #{}; let n = 0; loop { x[`m${n}`] = n; n += 1; }",
        "let x = #{}; let n = 0; loop { x.set(`m${n}`, n); n += 1; }",
        "let x = #{}; loop { x.a = x; x.b = x; }",
        "let x = \"\"; x.pad(60000, \"x\"); [x, x, x].join(\"\")",
        "let x = \"\"; x.pad(60000, \"x\"); x.to_chars()",
        "let x = #{}; let y = \"\"; y.pad(60000, \"x\"); for n in 0..500 { x[`m${n}`] = y; } x.to_string()",
        "let x = #{}; let y = \"\"; y.pad(60000, \"x\"); for n in 0..500 { x[`m${n}`] = y; } x.to_json()",
    ] {
        let limit = limit_of(body);
        let ended =
            matches!(limit, ScriptLimit::Size | ScriptLimit::Memory | ScriptLimit::Operations | ScriptLimit::Time);
        assert!(ended, "{limit:?}: {body}");
    }
}

#[test]
fn padding_ends() {
    for (padding, expected) in [("\"\"", "a"), ("\"xy\"", "axyxy"), ("'x'", "axxxx"), ("\"å\"", "aåååå")] {
        let source = format!("fn admit(message) {{ let text = \"a\"; text.pad(5, {padding}); refuse(text) }}");
        let script = Script::compile("hostile.rhai", &source, &Modules::none()).unwrap().allowing(SOON);
        let verdict = script.admit(&MessageFacts::default(), &Given::default()).map(|it| it.verdict);
        assert_eq!(verdict, Ok(AdmitVerdict::Refuse { reason: expected.to_owned() }), "{padding}");
    }
}

#[test]
fn recursion_ends_before_the_stack() {
    for source in [
        "fn f(n) { f(n + 1) } fn admit(message) { f(0) }",
        "fn admit(message) { admit(message) }",
        "fn a(n) { b(n) } fn b(n) { a(n) } fn admit(message) { a(0) }",
        "fn admit(message) { let f = |g| g.call(g); f.call(f) }",
        "fn f(n) { [n].map(|x| f(x)) } fn admit(message) { f(0) }",
        "fn f(n) { [2, 1].sort(|x, y| f(x)) } fn admit(message) { f(0) }",
        "fn f(n) { let x = [[[[f(n + 1)]]]]; x } fn admit(message) { f(0) }",
    ] {
        assert_eq!(fault_of(source).kind, ScriptFaultKind::Limit(ScriptLimit::Calls), "{source}");
    }
    // A script's `catch` does not help it on.
    let caught = fault_of("fn f(n) { try { f(n + 1) } catch { f(n + 1) } } fn admit(message) { f(0) }");
    assert!(matches!(caught.kind, ScriptFaultKind::Limit(_)), "{caught}");
}

#[test]
fn values_that_are_nested_deeply_are_printed_compared_and_dropped() {
    let deep = "let x = []; for n in 0..900 { x = [x]; }";
    let deep_map = "let x = #{}; for n in 0..900 { x = #{a: x}; }";
    for build in [deep, deep_map] {
        for rest in [
            "x.to_string()",
            "`${x}`",
            "let y = x; x == y",
            "print(x)",
            "debug(x)",
            "x",
            "x.to_json()",
            "\"\" + x",
            "[x].contains(x)",
            "x in [x]",
            "[x].index_of(x)",
            "let y = [x, x]; y.dedup(); y",
            "switch x { [] => 1, _ => x }",
            "x.to_debug()",
            "[x, x].sort()",
            "let y = x; y = [y]; y == [x]",
        ] {
            let source = format!("fn admit(message) {{ {build} {rest} }}");
            let script = Script::compile("hostile.rhai", &source, &Modules::none()).unwrap().allowing(SOON);
            assert!(script.admit(&MessageFacts::default(), &Given::default()).is_err(), "{rest}");
        }
    }
}

#[test]
fn sources_that_are_nested_deeply_are_refused() {
    let many = 50_000;
    let around = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let fits = |text: &str| limits::SOURCE / text.len() - 60;
    let mut sources = vec![format!("fn admit(message) {{ {} }}", around("(", "1", ")", many))];
    for (open, inner, close) in [
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("#{a:", "1", "}"),
        ("{", "1", "}"),
        ("-", "1", ""),
        ("!", "true", ""),
        ("1+", "1", ""),
        ("1-(", "1", ")"),
        ("true&&", "true", ""),
        ("()??", "1", ""),
        ("2**", "1", ""),
        ("|x|", "1", ""),
        ("if true{", "1", "}"),
        ("if true{}else ", "{}", ""),
        ("while false{", "1", "}"),
        ("switch 1{1=>", "1", "}"),
        ("try{", "1", "}catch{}"),
        ("`${", "1", "}`"),
        ("return ", "1", ""),
        ("throw ", "1", ""),
        ("message", ".a", ""),
        ("f(", "1", ")"),
        ("f.call(", "1", ")"),
    ] {
        let times = fits(&format!("{open}{close}"));
        sources.push(format!("fn f(x) {{ x }} fn admit(message) {{ {} }}", around(open, inner, close, times)));
        sources.push(format!("fn admit(message) {{ 1 }} {};", around(open, inner, close, times)));
    }
    for (repeated, times) in [(".a", fits(".a")), ("[0]", fits("[0]")), (".f()", fits(".f()")), ("?.a", fits("?.a"))] {
        sources.push(format!("fn admit(message) {{ message{} }}", repeated.repeat(times)));
    }
    for source in sources {
        let head: String = source.chars().take(60).collect();
        let begun = Instant::now();
        let refused = Script::compile("hostile.rhai", &source, &Modules::none());
        assert!(refused.is_err(), "{head}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{head}: {:?}", begun.elapsed());
        assert!(Expression::compile("hostile", &source, Age::New).is_err(), "{head}");
    }
    for (open, inner, close) in [("(", "true", ")"), ("!", "true", ""), ("true&&", "true", ""), ("1+", "1", "")] {
        for times in [200, 400, 8_000] {
            let refused = Expression::compile("hostile", &around(open, inner, close, times), Age::New);
            assert!(refused.is_err(), "{times} times {open}");
        }
    }
}

#[test]
fn what_is_as_deep_as_allowed_runs_within_a_worker_threads_stack() {
    // A worker's stack is 2 MiB; half of it must do, for all that is on it before.
    let inner = format!("{}f(n + 1){}", "(1 + ".repeat(5), ")".repeat(5));
    let chain = "1 + ".repeat(20);
    let source = format!(
        "fn f(n) {{ if n > 100 {{ 1 }} else {{ if true {{ [{chain}{inner}].map(|x| x) }} }} }} fn admit(message) {{ f(0) }}"
    );
    let compiled = Script::compile("hostile.rhai", &source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"));
    let worker = std::thread::Builder::new()
        .stack_size(1024 * 1024)
        .spawn(move || compiled.allowing(SOON).admit(&MessageFacts::default(), &Given::default()));
    let fault = worker.unwrap().join().expect("it does not overflow").expect_err("it recurses");
    assert_eq!(fault.kind, ScriptFaultKind::Limit(ScriptLimit::Calls), "{fault}");
}

#[test]
fn closures_keep_nothing_from_one_run_to_the_next() {
    let source = "fn admit(message) { let seen = 0; let count = || { seen += 1; seen }; count.call();
        if count.call() == 2 { allow() } else { refuse(\"kept\") } }";
    let script = Script::compile("hostile.rhai", source, &Modules::none()).unwrap().allowing(SOON);
    for _ in 0..3 {
        assert_eq!(script.admit(&MessageFacts::default(), &Given::default()), Ok(AdmitAnswer::default()));
    }
}

#[test]
fn a_panic_in_the_interpreter_is_a_fault() {
    let result = run("hostile.rhai", "admit", SOON, &Given::default(), || panic!("a defect"), |_| Ok(()));
    assert_eq!(result.expect_err("it failed").kind, ScriptFaultKind::Broken);
    let script = Script::compile("x.rhai", "fn admit(message) { allow() }", &Modules::none()).unwrap().allowing(SOON);
    assert!(script.admit(&MessageFacts::default(), &Given::default()).is_ok(), "the next run is well");
}

#[test]
fn what_a_script_prints_is_bounded() {
    let source = "fn admit(message) { for n in 0..200 { print(\"x\" + n); debug(n); } allow() }";
    let script = Script::compile("hostile.rhai", source, &Modules::none()).unwrap().allowing(SOON);
    assert_eq!(script.admit(&MessageFacts::default(), &Given::default()), Ok(AdmitAnswer::default()));
}

#[test]
fn functions_hold_no_copies_of_themselves() {
    for body in [
        "let f = |a| { a }; loop { f = f.curry(f, f, f, f, f, f, f, f); }",
        "let f = |a| { a }; f = curry(f, f); ()",
        "let f = #{curry: 1}; ()",
    ] {
        let source = format!("fn admit(message) {{ {body} }}");
        assert!(Script::compile("hostile.rhai", &source, &Modules::none()).is_err(), "{body}");
    }
    is_not_there("fn admit(message) { let f = |a| { a }; Fn(\"curry\").call(f, f) }");
}

/// Returns a source whose `admit` calls itself with more and more variables that hold the result of `value`.
fn deep_with(value: &str) -> String {
    let variables: String = (0..40).map(|nth| format!("let v{nth} = {value};")).collect();
    format!(
        "fn f(n, text) {{ {variables} if n < 12 {{ f(n + 1, text) }} }}
         fn admit(message) {{ let text = \"\"; text.pad(60000, \"x\"); f(0, text); () }}"
    )
}

#[test]
fn what_a_run_holds_is_measured() {
    for source in [
        deep_with("text + n"),
        deep_with("[text + n]"),
        deep_with("#{a: text + n}"),
        deep_with("{ let it = text + n; || it }"),
        "fn admit(message) { let text = \"\"; text.pad(60000, \"x\");
            let map = #{}; for n in 0..2000 { map[text + n] = n; } }"
            .to_owned(),
        "fn admit(message) { let text = \"\"; text.pad(60000, \"x\");
            let kept = []; for n in 0..1000 { let it = text + n; kept.push(|| it); } }"
            .to_owned(),
    ] {
        let script =
            Script::compile("hostile.rhai", &source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"));
        let fault = script.allowing(Duration::from_secs(20)).admit(&MessageFacts::default(), &Given::default());
        let fault = fault.expect_err(&source);
        assert_eq!(fault.kind, ScriptFaultKind::Limit(ScriptLimit::Memory), "{fault}: {source}");
        assert_eq!(fault.reason, "it uses too much memory");
    }
}

#[test]
fn constants_hold_little() {
    let text = "x".repeat(30_000);
    let source = format!("const A = \"{text}\"; const B = #{{}}; fn admit(message) {{ allow() }}");
    assert!(Script::compile("hostile.rhai", &source, &Modules::none()).is_ok());
    let source = format!(
        "const A = {{ let map = #{{}}; for n in 0..100 {{ map[`{text}${{n}}`] = n; }} map }};
         fn admit(message) {{ allow() }}"
    );
    let error = Script::compile("hostile.rhai", &source, &Modules::none()).expect_err("it is too large");
    assert!(error.reason.contains("must hold at most 1048576 bytes"), "{error}");
}

#[test]
fn what_is_thrown_or_answered_is_cut() {
    let nested = "let text = \"\"; text.pad(60000, \"x\");
        let f = || text; let a = []; a.pad(1000, f); let g = || a; let b = []; b.pad(1000, g);";
    for (rest, words) in [
        ("throw b", "Runtime error: [Fn("),
        ("throw #{b: b, text: text}", "Runtime error: #{"),
        ("throw text", "Runtime error: xxx"),
        ("let c = #{}; c[text] = b; c", "can't be answered"),
        ("let c = #{}; for n in 0..3 { c[text + n] = n; } #{attributes: c}", "must have at most 131072 bytes"),
    ] {
        let source = format!("fn admit(message) {{ {nested} {rest} }}");
        let script = Script::compile("hostile.rhai", &source, &Modules::none()).unwrap().allowing(SOON);
        let fault = script.admit(&MessageFacts::default(), &Given::default()).expect_err(rest);
        assert!(fault.reason.contains(words), "{fault}");
        assert!(fault.to_string().chars().count() < 1_200, "{}", fault.to_string().len());
    }
}

/// Ways in which closures hold themselves, or one another.
const CIRCLES: &[&str] = &[
    "let f = 1; f = || f; ()",
    "let x = []; let f = || x; x = [f]; ()",
    "let x = #{}; let f = || x; x.f = f; ()",
    "let x = #{a: #{}}; x.a.f = || x; ()",
    "let a = 1; let b = || a; a = || b; ()",
    "let a = []; let b = []; let f = || a; let g = || b; a = [g, g]; b = [f, f]; a = [f, g, || [a, b]]; ()",
    "const K = [1]; let f = || K; f = || [f, K]; ()",
    "let f = |x| x; for n in 0..50 { let g = f; f = |x| g.call(x); } f = || f; ()",
    "let text = \"\"; text.pad(60000, \"x\"); let f = || text; text = [text, f]; ()",
    "let f = 1; f = || f; throw f",
    "let f = 1; f = || f; loop { let g = f; f = || [f, g]; }",
    "let f = 1; f = || f; f",
];

#[test]
fn closures_that_hold_themselves_are_freed() {
    for body in CIRCLES {
        let source = format!("fn admit(message) {{ let lot = chance(); {body} }}");
        let script =
            Script::compile("hostile.rhai", &source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"));
        let run = |_| drop(script.admit(&MessageFacts::default(), &Given::default()));
        (0..10).for_each(run);
        let before = allocator::balance();
        (0..100).for_each(run);
        let left = allocator::balance() - before;
        assert!(left < 4 * 1024, "{left} bytes are left by 100 runs of {body}");
    }
}

#[test]
fn a_hundred_thousand_runs_leave_nothing() {
    let source =
        "fn admit(message) { let to = message.to; let x = []; let f = || x; x = [f, || to]; f = #{f: f, x: x}; () }";
    let script = Script::compile("hostile.rhai", source, &Modules::none()).unwrap();
    let mut before = 0;
    for nth in 0..100_000_u32 {
        if nth == 10_000 {
            before = allocator::balance();
        }
        let message = MessageFacts { to: nth.to_string(), ..MessageFacts::default() };
        let _ = script.admit(&message, &Given::default());
    }
    let left = allocator::balance() - before;
    // Remembered answers take at most 128 KiB a hook.
    assert!(left < 256 * 1024, "{left} bytes are left");
}

#[test]
fn a_long_chain_of_closures_is_freed_within_a_workers_stack() {
    for chain in ["let f = 1; loop { let g = f; f = || g; }", "let f = |a| a; loop { let g = f; f = |a| g.call(a); }"] {
        for end in ["", "throw f"] {
            let chain = chain.replace("loop", "for n in 0..6000");
            let source = format!("fn admit(message) {{ {chain} {end} }}");
            let script = Script::compile("hostile.rhai", &source, &Modules::none()).unwrap();
            let work = move || script.allowing(SOON).admit(&MessageFacts::default(), &Given::default());
            let worker = std::thread::Builder::new().stack_size(512 * 1024).spawn(work).unwrap();
            let _ = worker.join().expect("it does not overflow");
        }
    }
}

#[test]
fn what_the_top_shares_lives_for_one_run() {
    let source = "let seen = 0; const COUNT = || { seen += 1; seen };
        fn admit(message) { if global::COUNT.call() == 1 { allow() } else { refuse(\"kept\") } }";
    let script = Script::compile("hostile.rhai", source, &Modules::none()).unwrap_or_else(|error| panic!("{error}"));
    let script = script.allowing(SOON);
    for nth in 0..3 {
        let given = Given { chance: f64::from(nth), ..Given::default() };
        assert_eq!(script.admit(&MessageFacts::default(), &given), Ok(AdmitAnswer::default()));
    }
    let module = ("kept".to_owned(), "let seen = 0; export const COUNT = || { seen += 1; seen };".to_owned());
    let error = Modules::compile(&[module].into()).expect_err("a module lives longer than a run");
    assert!(error.reason.contains("is not allowed to use variables around it"), "{error}");
}

/// Returns the limit that a run of 5 ms meets whose only operations are `times` turns of `work`.
fn spent_by(times: u32, work: impl Fn()) -> Option<ScriptLimit> {
    let turns = || {
        for _ in 0..times {
            work();
            let _ = budget::check();
        }
    };
    budget::within(1, Duration::from_millis(5), Given::default(), turns).1
}

#[test]
fn work_that_no_operation_interrupts_is_charged() {
    let work = || {
        let began = cpu_time::ThreadTime::now();
        while began.elapsed() < Duration::from_millis(25) {}
    };
    assert_eq!(spent_by(2, work), Some(ScriptLimit::Time), "four times as much is too much");
    let wait = || std::thread::sleep(Duration::from_millis(100));
    assert_eq!(spent_by(2, wait), None, "others may have had the processor");
    let wait = || std::thread::sleep(Duration::from_millis(600));
    assert_eq!(spent_by(2, wait), Some(ScriptLimit::Time), "nothing lasts longer than a second");
}

#[test]
fn sources_of_any_kind_are_parsed_within_their_memory() {
    for (open, repeated, close) in [
        ("", "1;", ""),
        ("", "a.b(1);", ""),
        ("let x = [", "1,", "];"),
        ("let x = [", "[],", "];"),
        ("let x = #{", "a:1,", "};"),
        ("let x = `", "${1}", "`;"),
        ("switch 1 {", "0..1=>1,", "}"),
        ("switch 1 {", "1=>1,", "}"),
        ("", "if 1{}", ""),
        ("", "let a=1;", ""),
        ("", "fn(){}", ""),
        ("", "||1;", ""),
        ("", "const A=1;", ""),
        ("", "import\"a\"as a;", ""),
        ("", "/*", ""),
        ("", "\\", ""),
        ("\"", "\\n", "\";"),
    ] {
        let times = (limits::SOURCE - open.len() - close.len()) / repeated.len();
        let source = format!("{open}{}{close}", repeated.repeat(times));
        let before = allocator::balance();
        let script = Script::compile("hostile.rhai", &source, &Modules::none());
        let kept = allocator::balance() - before;
        assert!(kept < 16 * 1024 * 1024, "{repeated}: {kept} bytes");
        drop(script);
    }
}
