//! Lists by pages: a cursor marks the end of the last one, and its form is opaque to clients.

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::request::Query;
use crate::app::PageRows;

const DEFAULT: u32 = 50;
const MOST: u32 = 250;

/// The parameters of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`Paging::of` reads them; this lists them in the document")]
pub struct PageParams {
    /// 50 by default.
    #[param(minimum = 1, maximum = 250)]
    limit: Option<u32>,
    /// `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// Which page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging<Id> {
    pub limit: u32,
    /// The last id of the page before.
    pub after: Option<Id>,
}

impl<Id: FromStr> Paging<Id> {
    /// Takes `limit` and `cursor`.
    pub fn of(query: &mut Query) -> Self {
        let limit = query.take("limit", |text| match text.parse() {
            Ok(limit) if (1..=MOST).contains(&limit) => Ok(limit),
            _ => Err(format!("must be a number from 1 to {MOST}")),
        });
        let after = query
            .take("cursor", |text| decode(text).ok_or_else(|| "must be a cursor, as `next_cursor` has it".to_owned()));
        Self { limit: limit.unwrap_or(DEFAULT), after }
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T: ToSchema> {
    pub data: Vec<T>,
    /// For `?cursor=`; null on the last page.
    pub next_cursor: Option<String>,
}

impl<T: ToSchema> Page<T> {
    /// Turns rows into a page. `id` gives the text of the cursor.
    pub fn of<Row>(page: PageRows<Row>, id: impl Fn(&Row) -> String, view: impl FnMut(Row) -> T) -> Self {
        let PageRows { rows, more } = page;
        let next_cursor = rows.last().filter(|_| more).map(|row| URL_SAFE_NO_PAD.encode(id(row)));
        Self { data: rows.into_iter().map(view).collect(), next_cursor }
    }

    /// A list that is short by its nature.
    pub const fn whole(data: Vec<T>) -> Self {
        Self { data, next_cursor: None }
    }
}

fn decode<Id: FromStr>(cursor: &str) -> Option<Id> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use angarium_domain::ids::MessageId;

    #[test]
    fn the_cursor_of_a_page_leads_to_the_next() {
        let rows: Vec<_> = (0..2).map(|_| MessageId::new()).collect();
        let page = |more| Page::of(PageRows { rows: rows.clone(), more }, ToString::to_string, |id| id.to_string());
        assert_eq!(page(true).data.len(), 2);
        assert_eq!(decode::<MessageId>(&page(true).next_cursor.unwrap()), Some(rows[1]));
        let last = page(false);
        assert_eq!(last.next_cursor, None);
        assert_eq!(decode::<MessageId>("bm8"), None);
    }
}
