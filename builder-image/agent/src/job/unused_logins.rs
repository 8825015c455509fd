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
    // The login of the push has a path of its own; the Secret that it is from may be named for pulls, too.
    let found: Vec<&Login> = repositories.iter().filter_map(|repository| Login::find(&logins, repository)).collect();
    let is_used = |login: &Login| {
        let shows = |found: &&Login| std::ptr::eq(login, *found) || login.covers(found) && login.is_same_account(found);
        found.iter().any(shows)
    };
    let used = logins.iter().enumerate().filter_map(|(index, login)| is_used(login).then_some(index));
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
            username: by.to_owned(),
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

    /// One Secret for all: `image.secretRef` and `pullSecretRefs` name it, and the base images are public.
    #[test]
    fn what_is_shown_for_the_push_is_used() {
        let login = |path: &str, user: &str, by: &str| Named {
            registry: "a.example".to_owned(),
            path: path.to_owned(),
            username: user.to_owned(),
            password: "p".to_owned(),
            named_by: by.to_owned(),
            ..Named::default()
        };
        let repositories = BTreeSet::from(["a.example/team/app"].map(|name| Repository::parse(name).unwrap()));
        for (user, count) in [("robot", 0), ("another", 1)] {
            let logins = vec![login("team/app", "robot", ""), login("", user, "the Secret")];
            let spec = Spec { logins, ..Spec::default() };
            assert_eq!(warnings(&spec, &repositories).len(), count, "{user}");
        }
    }
}
