//! Pages of lists: a limited number of rows, and of bytes, because entries may be large and a page is held in memory.

use std::pin::pin;

use futures_util::{Stream, TryStreamExt};
use sqlx::{Row, ValueRef, postgres::PgRow};

use super::{Result, StoreError};

/// The most bytes of a page, but for a first row that is larger.
const MOST_BYTES: usize = 1 << 20;

/// The rows of a page.
#[derive(Debug, Clone)]
pub struct PageRows<T> {
    pub rows: Vec<T>,
    /// Whether others follow.
    pub more: bool,
}

/// Returns the limit of a statement: one row more than a page, so that it is known whether others follow.
pub(super) const fn one_more(limit: u32) -> i64 {
    limit as i64 + 1
}

/// Takes a page of at most `limit` rows from an answer of the database, which has one more where others follow.
pub(super) async fn page<T>(
    answer: impl Stream<Item = sqlx::Result<PgRow>>,
    limit: u32,
    read: impl Fn(&PgRow) -> Result<T>,
) -> Result<PageRows<T>> {
    let mut answer = pin!(answer);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = answer.try_next().await? {
        bytes += size(&row)?;
        if rows.len() >= limit as usize || (bytes > MOST_BYTES && !rows.is_empty()) {
            return Ok(PageRows { rows, more: true });
        }
        rows.push(read(&row)?);
    }
    Ok(PageRows { rows, more: false })
}

fn size(row: &PgRow) -> Result<usize> {
    let mut bytes = 0;
    for column in 0..row.len() {
        let value = row.try_get_raw(column)?;
        if !value.is_null() {
            bytes += value.as_bytes().map_err(|error| StoreError::Failed(sqlx::Error::Decode(error)))?.len();
        }
    }
    Ok(bytes)
}
