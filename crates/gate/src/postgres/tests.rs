use proptest::prelude::*;

use super::classify::{Summary, understand};

fn classes(text: &str) -> String {
    understand(text).classes.join("+")
}

/// Statements and what they do; behind `|` the functions that may have effects.
const TABLE: &[(&str, &str)] = &[
    // Reads.
    ("SELECT 1", "select"),
    ("select * from t where a in (1, 2) and exists (select 1 from u)", "select"),
    ("(select 1) union (select 2)", "select"),
    ("values (1), (2)", "select"),
    ("table t", "select"),
    ("with x(a) as (select 1), y (b) as materialized (select 2) select * from x, y", "select"),
    ("select * from (with x (a) as (select 1) select * from x) z", "select"),
    ("select * from (values (1)) v(a) join (select 2) w(b) on v.a = w.b", "select"),
    ("select * from generate_series(1, 3) g(n), unnest(array[1]) as u(m)", "select"),
    ("select count(*) filter (where a > 1) over (partition by b) from t", "select"),
    ("select a::numeric(3, 1), cast(b as varchar(3)), interval '1 day' from t", "select"),
    ("select pg_catalog.lower(a), \"lower\"(b), LOWER(c) from t", "select"),
    ("select 'delete from t', $$drop table t$$, \"update\" from t -- delete\n/* insert */", "select"),
    ("select t.update, t.delete from t", "select"),
    (
        "select sum(a) filter (where b) over (order by c), count(*) over (w) from t group by grouping sets ((a), ())",
        "select",
    ),
    ("with x as not materialized (select 1) select * from x group by a, rollup (b)", "select"),
    ("select substring(a from 1 for 2), extract(year from b), position('a' in c) from t", "select"),
    ("explain select 1", "select"),
    ("explain (analyze, buffers) select 1", "select"),
    ("copy t to stdout", "select"),
    ("copy (select * from t) to stdout with (format csv)", "select"),
    ("declare c cursor for select 1", "select"),
    ("fetch 10 from c", "select"),
    (
        "select c.oid from pg_catalog.pg_class c where c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default",
        "select",
    ),
    ("select set_config('jit', 'off', false)", "select"),
    ("prepare p (int) as select $1", "select+session"),
    // Session and transactions.
    ("", "session"),
    (";;", "session"),
    ("show server_version", "session"),
    ("execute p(1, lower('a'))", "session"),
    ("deallocate all", "session"),
    ("discard all", "session"),
    ("set application_name = 'x'", "session"),
    ("set local statement_timeout to 100", "session"),
    ("set search_path to a, \"b\", 'c'", "session"),
    ("set time zone 'UTC'", "session"),
    ("set names 'UTF8'", "session"),
    ("set session authorization default", "session"),
    ("reset all", "session"),
    ("begin", "transaction"),
    ("start transaction isolation level serializable read only", "transaction"),
    ("commit; begin; rollback to savepoint a", "transaction"),
    ("set transaction isolation level repeatable read", "transaction"),
    // Writes.
    ("insert into t (a, b) values (1, lower('x')) on conflict (a) do update set b = excluded.b returning *", "write"),
    ("update only t set (a, b) = (1, 2) from u where t.a = u.a", "write"),
    ("delete from t using u where t.a = u.a", "write"),
    ("merge into t using u on t.a = u.a when matched then delete when not matched then insert (a) values (1)", "write"),
    ("truncate t", "write"),
    ("copy t (a, b) from stdin", "write"),
    ("with x as (delete from t returning *) select * from x", "select+write"),
    ("WITH x AS (UPDATE t SET a = 1 RETURNING *) TABLE x", "select+write"),
    ("select * from t for update", "select+write"),
    ("select * from t for no key update skip locked", "select+write"),
    ("select * from t for key share", "select+write"),
    ("explain analyze delete from t", "select+write"),
    ("explain (analyze) (select 1); delete from t", "select+write"),
    ("prepare p as delete from t", "session+write"),
    ("copy (delete from t returning *) to stdout", "select+write"),
    ("declare c cursor for select * from t for update", "select+write"),
    ("select 1; delete/**/from t", "select+write"),
    ("select 1/*'*/;delete from t--'", "select+write"),
    ("select $a$;$a$; delete from t; select $$;$$", "select+write"),
    ("select nextval('s')", "select+write"),
    ("select pg_catalog.setval('s', 1)", "select+write"),
    ("notify c, 'x'", "write"),
    ("lock table t", "write"),
    ("begin read write", "transaction+write"),
    ("begin; set transaction read write; delete from t", "transaction+write"),
    ("set session characteristics as transaction read write", "transaction+write"),
    ("set default_transaction_read_only = off", "write"),
    ("set local transaction_read_only to off", "write"),
    // What tables there are.
    ("select * into u from t", "ddl+select"),
    (
        "create table if not exists a.t (id int primary key, n numeric(3), u int references u(id) on delete cascade, check (lower(x) = x))",
        "ddl",
    ),
    ("create temp table t as select 1", "ddl"),
    ("create table t as with x as (delete from u returning *) select * from x", "ddl+write"),
    ("create unique index concurrently i on only t using btree (lower(a), b) where length(a) > 1", "ddl"),
    ("create or replace view v (a) as select 1", "ddl"),
    ("create table t (a int, b int, primary key (a), foreign key (b) references u(a)) partition by hash (a)", "ddl"),
    ("create table t (a int) inherits (u); create index i on t (a) include (b)", "ddl"),
    ("create type mood as enum ('a', 'b')", "ddl"),
    ("alter table t add column a varchar(3) default 'x', add foreign key (b) references u(c)", "ddl"),
    ("drop table if exists t cascade", "ddl"),
    ("vacuum (analyze) t (a)", "ddl"),
    ("refresh materialized view v", "ddl"),
    ("comment on table t is 'x'", "ddl"),
    // Functions that may have effects.
    ("select pg_read_file('/etc/passwd')", "select|pg_read_file"),
    ("select PG_READ_FILE /* x */ ('/etc/passwd')", "select|pg_read_file"),
    ("select \"pg_read_file\"('x'), pg_catalog.pg_ls_dir('.')", "select|pg_catalog.pg_ls_dir,pg_read_file"),
    ("select * from dblink('dbname=x', 'delete from t') as t(a int)", "select|dblink"),
    ("select * from a, dblink('x') as (values int)", "select|dblink"),
    ("select lo_import('/etc/passwd'), lo_export(1, 'x')", "select|lo_export,lo_import"),
    ("select query_to_xml('delete from t', true, true, '')", "select|query_to_xml"),
    ("select set_config('transaction_read_only', 'off', false)", "select|set_config"),
    ("select set_config('transaction_' || 'read_only', 'off', false)", "select|set_config"),
    ("select set_config(E'jit', 'off', false)", "select|set_config"),
    ("select app.f(1), public.lower('x'), a.b.lower('x')", "select|a.b.lower,app.f,public.lower"),
    ("select distinct on (a) pg_read_file(a) from t", "select|pg_read_file"),
    ("select 'x' operator(pg_catalog.||) pg_read_file(a) from t", "select|pg_read_file"),
    ("select substring(a from operator(pg_catalog.-) pg_read_file(b)) from t", "select|pg_read_file"),
    ("select a[1: :pg_sleep(1)], a[1:pg_sleep(1)] from t", "select|pg_sleep"),
    ("select * from t join u on pg_sleep(1) is null", "select|pg_sleep"),
    ("select pg_terminate_backend(1), pg_reload_conf()", "select|pg_reload_conf,pg_terminate_backend"),
    (
        "select key('x'), list(1), over (a), path('x'), hash(2), a from t where filter(b)",
        "select|filter,hash,key,list,over",
    ),
    ("select by(1), within(1), of(1), partition(1)", "select|by,of,partition,within"),
    // An expression's part is a call of a function with one argument.
    ("select ('/etc/passwd'::text).pg_read_file", "select|pg_read_file"),
    ("select (1) /* x */ . \"pg_terminate_backend\"", "select|pg_terminate_backend"),
    ("select $1.lo_import, a[1].pg_ls_dir, x.a[1].b.pg_sleep from x", "select|b,lo_import,pg_ls_dir,pg_sleep"),
    ("select (row(1)::t).a.pg_sleep", "select|a,pg_sleep"),
    ("select ('s'::regclass).nextval, (1).abs, ('x').upper", "select+write"),
    ("select \"pg_catalog.lower\"('x')", "select|\"pg_catalog.lower\""),
    ("select (t).*, a.b.c, \"a\".b from s.t", "select"),
    ("select a.b.c.d.e.pg_sleep", "select|pg_sleep"),
    ("execute p(pg_sleep(1))", "session|pg_sleep"),
    ("call p(1)", "write|p"),
    ("create index i on t (f(a))", "ddl|f"),
    ("create table t as select pg_read_file('x')", "ddl|pg_read_file"),
    ("alter table t alter a type int using f(a)", "ddl|f"),
    ("insert into t select f(a) from u", "write|f"),
    ("copy (select pg_read_file('x')) to stdout", "select|pg_read_file"),
    // What no grant allows.
    ("copy t from '/etc/passwd'", "other"),
    ("copy t to program 'sh'", "other"),
    ("copy (select 1) to '/tmp/x'", "other"),
    ("copy t (\"from\") from program 'id'", "other"),
    ("do $$ begin delete from t; end $$", "other"),
    ("load 'x'", "other"),
    ("update pg_settings set setting = 'off' where name = 'standard_conforming_strings'", "other+write"),
    ("with x as (update pg_catalog . \"pg_settings\" set setting = 'off' returning 1) table x", "other+select+write"),
    ("create view v as select * from PG_SETTINGS", "ddl+other"),
    ("update pg_sett\u{130}ngs set setting = 'off'", "other+write"),
    ("select setting from pg_settings", "select"),
    ("set role postgres", "other"),
    ("set role = postgres", "other"),
    ("set session authorization postgres", "other"),
    ("set \"role\" = x", "other"),
    ("set standard_conforming_strings = off", "other"),
    ("set client_encoding = 'sjis'", "other"),
    ("set names 'big5'", "other"),
    ("set search_path = evil, pg_catalog", "other"),
    ("set search_path = U&'pg!005fcatalog' uescape '!'", "other"),
    ("set search_path = 'evil, pg_cat'\n'alog'", "other"),
    ("set session_replication_role = replica", "other"),
    ("reset transaction_read_only", "write"),
    ("reset default_transaction_read_only", "session"),
    ("reset standard_conforming_strings", "session!"),
    ("alter system set archive_command = 'x'", "other"),
    ("alter role me superuser", "other"),
    ("alter table t owner to x", "other"),
    ("alter table t disable trigger all", "other"),
    ("alter table t disable row level security", "other"),
    ("create function f() returns int language sql as 'select 1'", "other"),
    ("create extension dblink", "other"),
    ("create rule r as on select to t do instead (select 1; delete from t)", "other+write"),
    ("create foreign table t (a int) server s", "other"),
    ("create schema s create view v as select 1", "other"),
    ("create role x", "other"),
    ("create trigger t after insert on t execute function f()", "other"),
    ("create policy p on t", "other"),
    ("drop function f", "other"),
    ("drop owned by x", "other"),
    ("grant all on t to public", "other"),
    ("revoke all on t from public", "other"),
    ("reassign owned by a to b", "other"),
    ("prepare transaction 'x'", "other"),
    ("commit prepared 'x'", "other"),
    ("security label on table t is 'x'", "other"),
    ("checkpoint", "other"),
    ("import foreign schema s from server x into y", "other"),
    ("select 1; nonsense", "other+select"),
    ("\"select\" 1", "other"),
    ("select U&\"\\0070g_read_file\"('x')", "other"),
    ("select 'a", "other"),
    ("select E'a'\n'\\'; delete from t; --'", "other"),
    ("explain explain explain explain explain select 1", "other+select"),
];

#[test]
fn statements_are_what_they_do() {
    assert!(TABLE.len() > 120);
    let mut wrong = Vec::new();
    for (text, want) in TABLE {
        let want = if *want == "session!" { "other" } else { want };
        let Summary { classes, functions, note, .. } = understand(text);
        let mut got = classes.join("+");
        if !functions.is_empty() {
            got = format!("{got}|{}", functions.join(","));
        }
        if got != *want {
            wrong.push(format!("{text:?}: {got} ({note:?}), not {want}"));
        }
        assert_eq!(note.is_some(), classes.contains(&"other"), "{text}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_told_has_no_constants() {
    let one = understand("select * from a.b join \"C\" on true where x = 'secret' and y = 12");
    let two = understand("SELECT * from a.b join \"C\" on true where x = 'other' and y = 7");
    assert_eq!(one.tables, ["C", "a.b"]);
    assert_eq!(one.verbs, ["select"]);
    assert_ne!(one.digest, two.digest, "letters count as they are written");
    let three = understand("select * from a.b  join \"C\" on true where x = $$o'ther$$ and y = 7 -- hm");
    assert_eq!(one.digest, three.digest);
    assert!(!format!("{one:?}").contains("secret"));
}

#[test]
fn long_texts_cost_time_in_proportion() {
    for part in [
        "(",
        ",a(",
        "a(a)",
        ")f(a)",
        ",f(a)as(",
        "create index i(",
        "from a.a.",
        ").a",
        "a.",
        "/*",
        "'a' ",
        "on(a)f(a)",
    ] {
        let text = format!("create index {}", part.repeat((1 << 20) / part.len()));
        let started = std::time::Instant::now();
        let _ = understand(&text);
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{part}: {:?}", started.elapsed());
    }
}

/// Pieces that, put together, look like much.
const PIECES: &[&str] = &[
    "select ",
    "delete ",
    "from ",
    "t ",
    "(",
    ")",
    ", ",
    "as ",
    "with ",
    "'",
    "''",
    "\"",
    "$$",
    "$a$",
    "/*",
    "*/",
    "--",
    "\n",
    "E'",
    "\\",
    "\\'",
    "U&'",
    "1",
    "1.",
    "e",
    ";",
    "f(",
    "pg_read_file(",
    ".",
    "::",
    "insert into ",
    "on ",
    "for ",
    "update ",
    "copy ",
    "stdin ",
    "set ",
    "role ",
    "explain ",
    "operator(",
    "create ",
    "table ",
    "index ",
    "é",
    "\u{a0}",
];

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(text in "\\PC{0,60}") {
        prop_assert!(!understand(&text).classes.is_empty());
    }

    #[test]
    fn a_deletion_is_not_hidden_by_what_stands_before_it(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14)) {
        // Whatever the pieces are, they are a text of their own, or are refused, or the deletion is seen.
        let before = pieces.concat();
        let summary = understand(&format!("{before};delete from t"));
        let seen = summary.classes.contains(&"write") || summary.classes.contains(&"other");
        if !seen && !before.contains("--") {
            let text = format!("{before};delete from t");
            let last = super::lex::tokens(&text).unwrap().last().map(|token| token.kind);
            prop_assert!(matches!(last, Some(super::lex::Kind::Text | super::lex::Kind::Quoted)), "{summary:?}");
        }
    }

    #[test]
    fn a_call_is_seen_wherever_an_expression_may_stand(
        place in prop::sample::select(&[
            "select {}", "select 1, {} as x", "select * from t where {} = 1", "select * from {} as f(a)",
            "select * from t, lateral {} f", "select case when {} then 1 end", "with x as (select {}) table x",
            "insert into t (a) values ({})", "update t set a = {}", "delete from t where {}", "values ({})",
            "select array[{}]", "select a::int + {}", "select not {}", "select - {}", "explain select {}",
            "prepare p as select {}", "declare c cursor for select {}", "copy (select {}) to stdout",
            "select * from t order by {}", "select * from t limit {}", "select * from t tablesample system ({})",
            "select count(*) filter (where {}) from t", "select row({})", "select coalesce(null, {})",
            "select ({}).*", "select x between {} and 2", "select x in ({})", "select exists (select {})",
            "create table t (a int default {})", "create view v as select {}", "execute p({})",
            "select x is distinct from {}", "select x at time zone {}", "select x like {}", "select x collate \"C\" || {}",
            "select * from t group by rollup ({})", "select * from t window w as (order by {})",
        ][..]),
        call in prop::sample::select(&["evil(1)", "evil (1)", "EVIL/**/(1)", "\"evil\"(a)", "x.evil(a, b)", "evil()",
            "(1).evil", "(select 1).evil", "$1.evil", "a[1].\"evil\"", "(x).y.evil", "(x.y) . evil"][..]),
    ) {
        let summary = understand(&place.replace("{}", call));
        let seen = summary.functions.iter().any(|name| name.ends_with("evil")) || summary.classes.contains(&"other");
        prop_assert!(seen, "{summary:?}");
    }
}

#[test]
fn what_the_server_keeps_is_known() {
    for (text, keeps) in [
        ("prepare p as select 1", true),
        ("declare c cursor for select 1", true),
        ("select 1; select 2", false),
        ("execute p", false),
    ] {
        assert_eq!(understand(text).keeps, keeps, "{text}");
    }
    assert!(understand(&format!("{}prepare p as select 1", "select 1;".repeat(100))).keeps);
}

#[test]
fn classes_are_sorted_words() {
    assert_eq!(classes("select 1; begin; delete from t"), "select+transaction+write");
}
