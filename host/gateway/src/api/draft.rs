//! Bodies that are checked as far as they go: of one with bad members the rest is read and checked
//! too, so that one answer names all that is wrong with it.

use std::borrow::Cow;

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    HttpState,
    fields::{Cut, Fields},
    json::{self, LONG},
    problem::{FieldProblem, MOST_PROBLEMS, Problem},
};

/// The number of times that a part is cut out of a body: after a member, its object may be the next.
const MOST_CUTS: usize = 4;

/// The readable part of a body, and the faults of the rest. Further checks use these fields; the value counts as the
/// body only if the faults end empty.
#[derive(Debug)]
pub struct Draft<T>(pub T, pub Fields);

impl<T: DeserializeOwned + ToSchema + Send + 'static> FromRequest<HttpState> for Draft<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, http: &HttpState) -> Result<Self, Problem> {
        let body = json::body(request, http).await?;
        json::read_apart(http, body.tenant, body.bytes.len(), move || read(&body.bytes)).await
    }
}

/// Reads a body, whole or without its bad members.
pub fn read<T: DeserializeOwned + ToSchema + 'static>(bytes: &[u8]) -> Result<Draft<T>, Problem> {
    let mut problems = json::problems::<T>(bytes)?;
    if problems.is_empty() {
        match serde_json::from_slice(bytes) {
            Ok(whole) => return Ok(Draft(whole, Fields::default())),
            Err(error) => problems.push(json::unnamed(&error)),
        }
    }
    // A list in an object's place is read as one without members.
    let is_object = !problems.iter().any(|it| it.pointer.is_empty() && it.code == "wrong_type");
    let worth_a_second_look = is_object && bytes.len() <= LONG && problems.len() < MOST_PROBLEMS;
    match worth_a_second_look.then(|| rest(bytes, &problems)).flatten() {
        Some((rest, cut)) => Ok(Draft(rest, Fields::after(problems, cut))),
        None => Err(Problem::fields(problems)),
    }
}

/// Returns the body without its invalid members, if that has the type.
fn rest<T: DeserializeOwned + ToSchema + 'static>(bytes: &[u8], problems: &[FieldProblem]) -> Option<(T, Cut)> {
    // A value that only exceeds a limit can be read whole.
    if let Ok(whole) = serde_json::from_slice(bytes) {
        return Some((whole, Cut::of_nothing(problems)));
    }
    let mut body: Value = serde_json::from_slice(bytes).ok()?;
    let mut cut = Cut::default();
    let mut bad = Cow::Borrowed(problems);
    for _ in 0..MOST_CUTS {
        cut.take_out(&mut body, &bad);
        // By way of its text, since a raw value reads from nothing else.
        let text = serde_json::to_vec(&body).ok()?;
        match serde_json::from_slice(&text) {
            Ok(rest) => return Some((rest, cut)),
            Err(_) => bad = Cow::Owned(json::problems::<T>(&text).ok()?),
        }
    }
    None
}
