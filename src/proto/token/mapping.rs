//! How the claims of a token that another system has made become a subject, a role and topics here.
//!
//! Claims are a JSON value, whatever they were written in. Invariants:
//!
//! 1. Nothing is granted that the rules do not name: a role comes from a table, or is the same for all; a value that the
//!    table has not is a user at most.
//! 2. Where there are rules for topics, a token that they give none is refused: no topics would be all that its role allows.
//! 3. What a claim says becomes part of a topic only if it has neither separators nor wildcards.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::proto::token::{Grant, Role};

/// Longest part of a topic that a claim may give, in bytes.
const MAX_PART: usize = 128;
/// What stands for the subject in a grant.
const SUBJECT: &str = "subject";

/// Which part of the claims is meant: names of objects and numbers of arrays (from 0) with dots between them; nothing for all
/// of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ClaimPath(String);

impl ClaimPath {
    /// The claim of this name.
    pub fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    fn of<'a>(&self, claims: &'a Value) -> Option<&'a Value> {
        // A name may have dots of its own, as those of Auth0 do, which are URLs.
        let whole = claims.get(&self.0).filter(|_| !self.0.is_empty());
        if self.0.is_empty() || whole.is_some() {
            return Some(whole.unwrap_or(claims));
        }
        let found = self.0.split('.').try_fold(claims, |value, part| match value {
            Value::Object(map) => map.get(part),
            Value::Array(array) => array.get(part.parse::<usize>().ok()?),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        });
        found.filter(|value| !value.is_null())
    }
}

/// Why claims give no right here. Nothing is granted; the operator decides whether the rules should say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmapped {
    /// No text and no whole number where the subject should be, or not of the form that was told.
    #[error("its claims name no subject")]
    Subject,
    /// No role of the table, where every other one is refused.
    #[error("its claims give no role")]
    Role,
    /// No topics, or what cannot be one.
    #[error("its claims give no topics")]
    Topics,
}

/// Whose a token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubjectRule {
    /// Where it stands; `None`: where tokens of the kind usually have it.
    pub claim: Option<ClaimPath>,
    /// What it must begin with, which is taken off.
    pub strip: String,
    /// What is put before it. A grant's `{subject}` is without it.
    pub add: String,
}

/// What its bearer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoleRule {
    /// Where it stands: a text, or a list of them, of which the one that gives most counts.
    pub claim: Option<ClaimPath>,
    /// What those texts mean.
    pub values: BTreeMap<String, Role>,
    /// Without a claim: the role of all. With one: of a bearer whose claim means nothing, a user; `None` refuses them.
    pub default: Option<Role>,
}

/// What its bearer may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicRule {
    /// Where it stands: a list of texts, or one with spaces between them.
    pub claim: Option<ClaimPath>,
    /// What those texts mean; none here: they are grants themselves.
    pub values: BTreeMap<String, Vec<Template>>,
    /// What every bearer gets.
    pub default: Vec<Template>,
}

/// A [`Grant`] in which `{claim}` stands for what that claim says, and `{subject}` for the subject, without what is added
/// to it: `room:{tenant}:*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(String);

/// A text is no [`Template`]. Anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no grant: write room:*, room:1=join or room:{{tenant}}:*")]
pub struct TemplateError(String);

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        let template = Self(text);
        // Whether it makes a grant does not depend on what is put into it.
        match template.fill(|_claim| Some("x".to_owned())) {
            Some(_) => Ok(template),
            None => Err(TemplateError(template.0)),
        }
    }
}

impl Template {
    /// The grant; `None` where a claim is missing, or it makes none.
    fn fill(&self, part: impl Fn(&str) -> Option<String>) -> Option<Grant> {
        let (mut text, mut rest) = (String::new(), self.0.as_str());
        while let Some((before, claim)) = rest.split_once('{') {
            let (claim, after) = claim.split_once('}')?;
            text.push_str(before);
            text.push_str(&part(claim)?);
            rest = after;
        }
        text.push_str(rest);
        text.parse().ok()
    }
}

/// The rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Whose a token is.
    pub subject: SubjectRule,
    /// What its bearer is; `None`: a user.
    pub role: Option<RoleRule>,
    /// What its bearer may do; `None`: all that the role allows.
    pub topics: Option<TopicRule>,
}

/// What claims give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Whose they are.
    pub sub: String,
    /// What the bearer is.
    pub role: Role,
    /// What the bearer may do; empty: all that the role allows.
    pub topics: Vec<Grant>,
}

impl Mapping {
    /// What is wrong with the rules, as far as that does not depend on any token.
    pub fn check(&self) -> Result<(), &'static str> {
        if let Some(RoleRule { claim, values, default }) = &self.role {
            match (claim, default) {
                (None, _) if !values.is_empty() => {
                    return Err("role.values has no effect without role.claim");
                }
                (None, None) => return Err("role needs a claim or a default"),
                (Some(_), _) if values.is_empty() => {
                    return Err(
                        "role.claim needs role.values: what each value of the claim means here",
                    );
                }
                (Some(_), Some(Role::NodeOperator | Role::Admin)) => {
                    return Err("role.default can only be user where there is a role.claim");
                }
                (None | Some(_), None | Some(_)) => {}
            }
        }
        if let Some(TopicRule { claim, values, default }) = &self.topics {
            if claim.is_none() && !values.is_empty() {
                return Err("topics.values has no effect without topics.claim");
            }
            if claim.is_none() && default.is_empty() {
                return Err("topics needs a claim or a default");
            }
        }
        Ok(())
    }

    /// What these claims give; `usual` is where tokens of their kind have the subject.
    ///
    /// # Errors
    /// Each [`Unmapped`].
    pub fn apply(&self, claims: &Value, usual: &str) -> Result<Mapped, Unmapped> {
        let own = self.subject(claims, usual).ok_or(Unmapped::Subject)?;
        let role = match &self.role {
            None => Role::User,
            Some(rule) => rule.of(claims).ok_or(Unmapped::Role)?,
        };
        let topics = match &self.topics {
            None => Vec::new(),
            Some(rule) => {
                let given = rule.of(claims, &own).filter(|given| !given.is_empty());
                given.ok_or(Unmapped::Topics)?
            }
        };
        Ok(Mapped { sub: format!("{}{own}", self.subject.add), role, topics })
    }

    /// What is left of the subject, before anything is added.
    fn subject(&self, claims: &Value, usual: &str) -> Option<String> {
        let SubjectRule { claim, strip, add: _ } = &self.subject;
        let usual = ClaimPath::new(usual);
        let found = single(claim.as_ref().unwrap_or(&usual).of(claims)?)?;
        let rest = found.strip_prefix(strip.as_str()).filter(|rest| !rest.is_empty())?;
        Some(rest.to_owned())
    }
}

impl RoleRule {
    fn of(&self, claims: &Value) -> Option<Role> {
        let Some(claim) = &self.claim else { return self.default };
        let said = claim.of(claims).map(texts).unwrap_or_default();
        said.iter().filter_map(|it| self.values.get(it)).max().copied().or(self.default)
    }
}

impl TopicRule {
    fn of(&self, claims: &Value, subject: &str) -> Option<Vec<Grant>> {
        let part = |name: &str| match name {
            SUBJECT => plain(subject.to_owned()),
            _ => plain(single(ClaimPath::new(name).of(claims)?)?),
        };
        let said = self.claim.as_ref().and_then(|claim| claim.of(claims)).map(texts);
        let words = said.iter().flatten().flat_map(|text| text.split_ascii_whitespace());
        let mut grants = Vec::new();
        for word in words {
            match self.values.get(word) {
                Some(means) => {
                    for template in means {
                        grants.push(template.fill(part)?);
                    }
                }
                None if self.values.is_empty() => grants.push(word.parse().ok()?),
                None => {} // means nothing here
            }
        }
        for template in &self.default {
            grants.push(template.fill(part)?);
        }
        Some(grants)
    }
}

/// A text or a whole number, as a text.
fn single(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

/// The texts of a list, or the only one.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().filter_map(single).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            single(value).into_iter().collect()
        }
    }
}

/// A text that can be part of a topic without being more than one.
fn plain(text: String) -> Option<String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte);
    ((1..=MAX_PART).contains(&text.len()) && text.bytes().all(fine)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::proto::topic::Pattern;

    fn templates(all: &[&str]) -> Vec<Template> {
        all.iter().map(|it| Template::try_from((*it).to_owned()).expect(it)).collect()
    }

    #[test]
    fn a_subject_is_found() {
        let of = |claim: Option<&str>, strip: &str, add: &str, claims: &Value| {
            let claim = claim.map(ClaimPath::new);
            let subject = SubjectRule { claim, strip: strip.to_owned(), add: add.to_owned() };
            let rules = Mapping { subject, ..Mapping::default() };
            rules.apply(claims, "sub").map(|it| it.sub)
        };
        let claims = json!({ "sub": "user?id=7", "n": 7, "u": { "id": ["a", "b"] }, "a.b": "c" });
        let is = |text: &str| Ok(text.to_owned());
        assert_eq!(of(None, "", "", &claims), is("user?id=7"));
        assert_eq!(of(None, "user?id=", "app:", &claims), is("app:7"));
        assert_eq!(of(Some("n"), "", "", &claims), is("7"));
        assert_eq!(of(Some("u.id.1"), "", "", &claims), is("b"));
        assert_eq!(of(Some("a.b"), "", "", &claims), is("c"));
        assert_eq!(of(Some(""), "", "", &json!(42)), is("42"));
        for (claim, strip) in
            [("x", ""), ("u", ""), ("u.id.2", ""), ("u.id.x", ""), ("sub.x", ""), ("", "")]
                .into_iter()
                .chain([("sub", "admin?id="), ("n", "7")])
        {
            assert_eq!(of(Some(claim), strip, "", &claims), Err(Unmapped::Subject), "{claim}");
        }
        for none in [json!({}), json!({ "sub": null }), json!({ "sub": 1.5 }), json!({ "sub": "" })]
        {
            assert_eq!(of(None, "", "", &none), Err(Unmapped::Subject), "{none}");
        }
    }

    #[test]
    fn a_role_is_given_by_the_table_alone() {
        use Role::{Admin, NodeOperator, User};
        let values = [("boss".to_owned(), Admin), ("ops".to_owned(), NodeOperator)];
        let table = |default| RoleRule {
            claim: Some(ClaimPath::new("role")),
            values: values.clone().into(),
            default,
        };
        let of = |rule: Option<RoleRule>, role: Value| {
            let rules = Mapping { role: rule, ..Mapping::default() };
            assert_eq!(rules.check(), Ok(()));
            rules.apply(&json!({ "sub": "a", "role": role }), "sub").map(|it| it.role)
        };
        for (role, found) in [
            (json!("boss"), Some(Admin)),
            (json!("ops"), Some(NodeOperator)),
            (json!(["x", "ops"]), Some(NodeOperator)),
            (json!(["ops", "boss"]), Some(Admin)),
            (json!("admin"), None),
            (json!("Boss"), None),
            (json!("boss "), None),
            (json!("ops boss"), None),
            (json!(""), None),
            (json!([]), None),
            (json!([["boss"]]), None),
            (json!({ "boss": true }), None),
            (json!(true), None),
            (json!(null), None),
        ] {
            assert_eq!(of(Some(table(None)), role.clone()), found.ok_or(Unmapped::Role), "{role}");
            let default = Ok(found.unwrap_or(User));
            assert_eq!(of(Some(table(Some(User))), role.clone()), default, "{role}");
            assert_eq!(of(None, role.clone()), Ok(User), "no rule: a user, whatever {role}");
            let all = RoleRule { default: Some(NodeOperator), ..RoleRule::default() };
            assert_eq!(of(Some(all), role), Ok(NodeOperator));
        }
        for bad in [
            table(Some(Admin)),
            table(Some(NodeOperator)),
            RoleRule::default(),
            RoleRule { values: BTreeMap::new(), ..table(None) },
            RoleRule { claim: None, ..table(Some(User)) },
        ] {
            assert!(Mapping { role: Some(bad), ..Mapping::default() }.check().is_err());
        }
    }

    fn granted(rule: TopicRule, claims: &Value) -> Result<Vec<String>, Unmapped> {
        let rules = Mapping { topics: Some(rule), ..Mapping::default() };
        assert_eq!(rules.check(), Ok(()));
        let mapped = rules.apply(claims, "sub")?;
        Ok(mapped.topics.iter().map(Grant::to_string).collect())
    }

    #[test]
    fn topics_are_given_by_claim_table_and_default() {
        let scope = Some(ClaimPath::new("scope"));
        let claims = |scope: Value| json!({ "sub": "u1", "tenant": "acme", "scope": scope });
        let is = |all: &[&str]| Ok(all.iter().map(|it| (*it).to_owned()).collect());
        let plain = TopicRule { claim: scope.clone(), ..TopicRule::default() };
        let of = |scope| granted(plain.clone(), &claims(scope));
        assert_eq!(of(json!(["room:1", "room:2=join"])), is(&["room:1", "room:2=join"]));
        assert_eq!(of(json!("room:1 room:2")), is(&["room:1", "room:2"]));
        for none in
            [json!(null), json!(""), json!([]), json!({}), json!(["room*"]), json!("a ro m*")]
        {
            assert_eq!(of(none.clone()), Err(Unmapped::Topics), "{none}");
        }
        let values = [("chat".to_owned(), templates(&["room:{tenant}:*", "user:{subject}=join"]))];
        let table = TopicRule { claim: scope, values: values.into(), default: Vec::new() };
        let of = |scope| granted(table.clone(), &claims(scope));
        assert_eq!(of(json!("chat other")), is(&["room:acme:*", "user:u1=join"]));
        for none in [json!("other"), json!("room:*"), json!("*"), json!("room:{tenant}:*")] {
            assert_eq!(of(none.clone()), Err(Unmapped::Topics), "{none}");
        }
        let all = TopicRule { default: templates(&["room:*=join"]), ..table };
        assert_eq!(granted(all, &claims(json!(null))), is(&["room:*=join"]));
    }

    #[test]
    fn a_claim_widens_no_topic() {
        let rule =
            || TopicRule { default: templates(&["room:{tenant}:*"]), ..TopicRule::default() };
        let of = |tenant: Value| granted(rule(), &json!({ "sub": "a", "tenant": tenant }));
        assert_eq!(of(json!(7)), Ok(vec!["room:7:*".to_owned()]));
        let long = "x".repeat(MAX_PART + 1);
        for bad in ["*", "a:*", "a:b", "", "a b", "a=join", "{x}", "ä", "\n", "a/b", &long] {
            assert_eq!(of(json!(bad)), Err(Unmapped::Topics), "{bad:?}");
        }
        for bad in [json!(null), json!(["a"]), json!({}), json!(true), json!(1.5)] {
            assert_eq!(of(bad.clone()), Err(Unmapped::Topics), "{bad}");
        }
        for bad in ["room:{tenant", "room*", "", "room:{tenant}=leave"] {
            assert!(Template::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for bad in [TopicRule::default(), TopicRule { claim: None, ..rule_with_values() }] {
            assert!(Mapping { topics: Some(bad), ..Mapping::default() }.check().is_err());
        }
    }

    fn rule_with_values() -> TopicRule {
        TopicRule { values: [("a".to_owned(), templates(&["a"]))].into(), ..TopicRule::default() }
    }

    proptest! {
        #[test]
        fn whatever_a_tenant_is_called_its_topics_are_below_its_own(tenant in "\\PC{0,8}") {
            let rule =
                TopicRule { default: templates(&["room:{tenant}:*"]), ..TopicRule::default() };
            let rules = Mapping { topics: Some(rule), ..Mapping::default() };
            let claims = json!({ "sub": "a", "tenant": tenant });
            if let Ok(mapped) = rules.apply(&claims, "sub") {
                let own: Pattern = format!("room:{tenant}:*").parse().expect("a pattern");
                prop_assert_eq!(mapped.topics.len(), 1);
                prop_assert!(mapped.topics.iter().all(|it| it.pattern == own));
            }
        }
    }
}
