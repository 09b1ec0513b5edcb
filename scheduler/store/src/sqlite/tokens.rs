//! Bearer tokens: hashes and what they may.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::{Shared, read::fetch, signed, unsigned};
use crate::{Error, TokenChange, TokenRow};

/// Applies changes in their order. Few at a time: last uses come at most once a minute each.
pub(super) async fn change(
    db: &mut SqliteConnection,
    changes: &[TokenChange],
) -> Result<(), sqlx::Error> {
    for change in changes {
        let query = match change {
            TokenChange::Made(row) => sqlx::query(
                "INSERT INTO tokens (id, name, hash, role, scope, created_at, created_by,
                                     expires_at, last_used_at, revoked_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )
            .bind(&row.id)
            .bind(&row.name)
            .bind(row.hash.to_vec())
            .bind(&row.role)
            .bind(&row.scope)
            .bind(signed(row.created_at))
            .bind(&row.created_by)
            .bind(row.expires_at.map(signed))
            .bind(row.last_used_at.map(signed))
            .bind(row.revoked_at.map(signed)),
            TokenChange::Used { id, at } => sqlx::query(
                "UPDATE tokens SET last_used_at = max(coalesce(last_used_at, 0), ?2) WHERE id = ?1",
            )
            .bind(id)
            .bind(signed(*at)),
            TokenChange::Revoked { id, at } => {
                sqlx::query("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1")
                    .bind(id)
                    .bind(signed(*at))
            }
        };
        query.execute(&mut *db).await?;
    }
    Ok(())
}

pub(super) async fn read(shared: &Shared) -> Result<Vec<TokenRow>, Error> {
    let sql = QueryBuilder::<Sqlite>::new("SELECT * FROM tokens ORDER BY created_at, id");
    fetch(shared, "read the tokens", sql, |row| {
        let time = |column: &str| -> Result<Option<u64>, sqlx::Error> {
            Ok(row.try_get::<Option<i64>, _>(column)?.map(unsigned))
        };
        let hash: Vec<u8> = row.try_get("hash")?;
        Ok(TokenRow {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            hash: hash.try_into().map_err(|_| sqlx::Error::ColumnDecode {
                index: "hash".to_owned(),
                source: "not of 32 bytes".into(),
            })?,
            role: row.try_get("role")?,
            scope: row.try_get("scope")?,
            created_at: unsigned(row.try_get("created_at")?),
            created_by: row.try_get("created_by")?,
            expires_at: time("expires_at")?,
            last_used_at: time("last_used_at")?,
            revoked_at: time("revoked_at")?,
        })
    })
    .await
}
