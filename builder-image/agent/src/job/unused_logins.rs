//! Tells of Secrets that the ImageBuild names and that no image of the build has use for: a key that is misspelled, or for
//! another path, would else show as a refusal alone.

use std::collections::BTreeSet;

use kiln_agent_proto::{Job as Spec, Warning};
use kiln_registry::{Login, Repository};

use super::registries;
use crate::reasons::Reason;

/// A warning for each Secret of which no login is for one of these repositories.
pub fn warnings(spec: &Spec, repositories: &BTreeSet<Repository>) -> Vec<Warning> {
    // Images of frontends are not among those that are known.
    if spec.allow_frontends {
        return Vec::new();
    }
    let logins = registries::logins(spec);
    let used = repositories.iter().filter_map(|repository| {
        let found = Login::find(&logins, repository)?;
        logins.iter().position(|login| std::ptr::eq(login, found))
    });
    let used: BTreeSet<&str> = used.map(|index| spec.logins[index].named_by.as_str()).collect();
    let named: BTreeSet<&str> = spec.logins.iter().map(|login| login.named_by.as_str()).collect();
    let unused = named.difference(&used).filter(|name| !name.is_empty());
    let warning = |name: &&str| {
        let own = spec.logins.iter().zip(&logins).filter(|(login, _)| login.named_by == *name);
        let keys: Vec<String> = own.map(|(_, login)| login.key()).take(8).collect();
        Warning {
            rule: Reason::LoginUnused.name().to_owned(),
            message: format!(
                "{name}, is not used: its logins are for {}, where this build asks for nothing, or with a login that fits better",
                keys.join(", ")
            ),
            dockerfile: String::new(),
            line: 0,
        }
    };
    unused.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_agent_proto::Login as Named;

    #[test]
    fn of_no_use() {
        let login = |(registry, path, by): (&str, &str, &str)| Named {
            registry: registry.to_owned(),
            path: path.to_owned(),
            named_by: by.to_owned(),
            ..Named::default()
        };
        let logins = [
            ("a.example", "team/app", ""),
            ("a.example", "", "the first"),
            ("a.example", "", "the second"),
            ("b.example", "team", "the third"),
            ("c.example", "", "the third"),
            ("d.example", "team-b", "the fourth"),
        ];
        let mut spec = Spec { logins: logins.map(login).into(), ..Spec::default() };
        let of = |names: &[&str]| names.iter().map(|name| Repository::parse(name).unwrap()).collect();
        let told = |spec: &Spec, names: &[&str]| {
            let warnings = warnings(spec, &of(names)).into_iter();
            warnings.map(|warning| warning.message.split(',').next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(&spec, &["a.example/team/app"]), "the first the fourth the second the third");
        assert_eq!(told(&spec, &["a.example/x", "b.example/team/y"]), "the fourth the second");
        assert_eq!(told(&spec, &["a.example/x", "c.example/y", "d.example/team-b"]), "the second");
        insta::assert_snapshot!(warnings(&spec, &of(&[]))[3].message, @"the third, is not used: its logins are for b.example/team, c.example, where this build asks for nothing, or with a login that fits better");
        spec.allow_frontends = true;
        assert_eq!(told(&spec, &[]), "");
    }
}
