//! Rules in CEL that several fields share, and those that tell the value that breaks them. The API server writes a field's
//! path and its value before a message, but for lists, maps and objects: there the message has to name what is wrong. A rule
//! for each entry of a list stands on the entry, where the path has its index.

use kube_core::{Message, Rule};
use schemars::Schema;
use serde_json::{Value, json};

/// A rule whose message is an expression in CEL, which tells the value.
pub fn telling(rule: impl Into<String>, message: impl Into<String>) -> Rule {
    Rule::new(rule).message(Message::Expression(message.into()))
}

/// Of the names that an object may have, those that it has, or none: for the message of a rule on how many it may have.
#[must_use]
pub fn which(fields: &[&str]) -> String {
    // Not `join`: the API server takes its result for boundless, as it does that of `string`.
    let names: Vec<_> = fields.iter().map(|field| format!("(has(self.{field}) ? ' {field}' : '')")).collect();
    let none: Vec<_> = fields.iter().map(|field| format!("has(self.{field})")).collect();
    format!("{} + ({} ? '' : ' none')", names.join(" + "), none.join(" || "))
}

/// A rule for the field `url`. It stands on the object that has the field: the API server would print a field's value, and this
/// one may hold a password.
#[must_use]
pub fn of_url(rule: &str, message: &str) -> Rule {
    Rule::new(rule).message(message).field_path(".url")
}

/// A repository: registry and path, without a scheme, tag or digest.
pub fn repository(schema: &mut Schema) {
    // What Docker takes for a host, and not for the first word of a path on Docker Hub.
    const HOST: &str =
        "([A-Za-z0-9-]+([.][A-Za-z0-9-]+)+(:[0-9]+)?|[A-Za-z0-9-]+:[0-9]+|localhost|[[][0-9A-Fa-f:.]+[]](:[0-9]+)?)";
    const WORD: &str = "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*";
    let lower = format!("(!self.matches('[A-Z]') || self.matches('^{HOST}(/[^A-Z]*)?$'))");
    // What a rule before has refused passes the later ones: one message says it.
    for (rule, message) in [
        ("!self.contains('://')".to_owned(), "a repository is written without a scheme, such as ghcr.io/acme/app"),
        (
            "!self.contains('@') && !self.matches(':[^/]*$') || self.matches('^[^/]*:[0-9]+$')".to_owned(),
            "a repository is written without tag and digest: a tag goes into tags",
        ),
        (
            format!("!self.matches('^{HOST}/?$')"),
            "this is a registry's host alone: add the repository's path, such as ghcr.io/acme/app",
        ),
        (
            format!("self.contains('://') || {lower}"),
            "a repository has capital letters: write its path in lower case, such as ghcr.io/acme/app",
        ),
        (
            format!(
                "self.contains('://') || !{lower} || self.matches('^({HOST}/)?{WORD}(/{WORD})*([:@].*)?$') || self.matches('^{HOST}/?$')"
            ),
            "a repository is registry/path, the path of words of lower case letters and digits, joined by . _ __ or -, such as ghcr.io/acme/app",
        ),
    ] {
        add(schema, json!({"rule": rule, "message": message}));
    }
}

/// Whether a text has no variable but those that there are. A brace alone is none.
const KNOWN: &str = "self.matches('^([^{]|[{][^{]|[{][{] *(branch|commit|shortCommit|timestamp|run) *[}][}])*$')";
const NO_SUCH_VARIABLE: &str =
    "no such variable: there are {{branch}}, {{commit}}, {{shortCommit}}, {{timestamp}} and {{run}}";

/// A path that may hold variables.
#[must_use]
pub fn variables() -> Rule {
    Rule::new(KNOWN).message(NO_SUCH_VARIABLE)
}

/// A list of tags.
pub fn tags(schema: &mut Schema) {
    const FORM: &str = "self.matches('^([A-Za-z0-9_.-]|[{][{][^{}]*[}][}])+$')";
    each(
        schema,
        &[
            json!({
                "rule": format!("!{FORM} || {KNOWN}"),
                "message": NO_SUCH_VARIABLE,
            }),
            json!({
                "rule": format!("{FORM} && !self.startsWith('.') && !self.startsWith('-')"),
                "message": "a tag is made of letters, digits and _ . -, begins with neither . nor -, and may hold {{branch}}, {{commit}}, {{shortCommit}}, {{timestamp}} and {{run}}",
            }),
        ],
    );
}

/// A list of programs.
pub fn programs(schema: &mut Schema) {
    each(
        schema,
        &[json!({
            "rule": "self.startsWith('/')",
            "message": "allowForeignPrograms lists absolute paths, such as /usr/bin/qemu-x86_64-static",
        })],
    );
}

/// A map of build arguments.
pub fn arguments(schema: &mut Schema) {
    keys(
        schema,
        "k.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
        "the name of a build argument is made of letters, digits and _, and does not begin with a digit",
    );
}

/// A map of files by their paths.
pub fn files(schema: &mut Schema) {
    keys(
        schema,
        r"k.size() <= 256 && k.matches('^[^/\\x00-\\x1f][^\\x00-\\x1f]*$') && !k.endsWith('/') && !k.split('/').exists(s, s == '..' || s == '.' || s == '')",
        "a path in inline.files is relative, such as Dockerfile or src/app.sh: write it without a leading /, without .. and with at most 256 characters",
    );
    add(
        schema,
        json!({
            "rule": "self.map(k, self[k].size()).sum() <= 1000000",
            "message": "inline.files hold more than 1000000 characters together: put them into a Git repository",
        }),
    );
}

/// A rule for each key of a map, which is `k` in it. One that has a line break, or is too long for a message, is not told.
fn keys(schema: &mut Schema, rule: &str, message: &str) {
    add(
        schema,
        json!({
            "rule": format!("self.all(k, {rule})"),
            "message": message,
            "messageExpression": format!("'\"' + self.filter(k, !({rule}))[0] + '\": {message}'"),
        }),
    );
}

/// Rules for each entry of a list.
fn each(schema: &mut Schema, rules: &[Value]) {
    if let Some(Ok(mut entry)) = schema.get("items").cloned().map(Schema::try_from) {
        for rule in rules {
            add(&mut entry, rule.clone());
        }
        schema.insert("items".to_owned(), entry.into());
    }
}

fn add(schema: &mut Schema, rule: Value) {
    let rules = schema.ensure_object().entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Value::Array(rules) = rules {
        rules.push(rule);
    }
}
