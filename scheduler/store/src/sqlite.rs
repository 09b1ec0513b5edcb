//! The embedded store: SQLite in WAL mode, flushed at every commit.
//!
//! One connection writes, a few read. A lock file beside the database keeps a
//! second scheduler out. A commit runs in a task of its own, so that a caller
//! that goes away never leaves half a transaction behind.

mod audit;
mod commit;
mod denied;
mod folder;
mod read;
mod snapshot;
mod tokens;

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use scheduler_core::{
    fact::Fact,
    model::{JobId, UtcMillis},
};
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    AuditQuery, AuditRow, Commit, Error, JobQuery, JobRow, Loaded, Page, Raised, RepositoryCounts,
    RunnerQuery, RunnerRow, Store, TokenRow, chain,
};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// How long a statement waits for a lock, for example of a backup tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How to open the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of `longshore.db`; made when missing.
    pub state_dir: PathBuf,
    /// Connections for reads, opened when needed.
    pub readers: u32,
    /// Most bytes of the database file; `None`: what the disk has.
    pub max_bytes: Option<u64>,
}

impl Options {
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            readers: 4,
            max_bytes: None,
        }
    }
}

/// The embedded store. Clones share it.
#[derive(Clone, Debug)]
pub struct Sqlite {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// For messages.
    path: String,
    options: SqliteConnectOptions,
    /// `None` after a failure that left the connection in doubt.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
    snapshotting: Mutex<()>,
    /// Released when the last clone goes.
    _lock: File,
}

impl Sqlite {
    /// Opens the store, making or upgrading it as needed.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let folder::Folder { database, lock } = folder::prepare(&options.state_dir)?;
        let path = database.display().to_string();
        let connect = connect_options(&database, options.max_bytes);

        let mut writer = connect
            .connect()
            .await
            .map_err(|e| failed(&path, "open the store", e))?;
        migrate(&path, &mut writer).await?;
        commit::ensure_fleet(&mut writer)
            .await
            .map_err(|e| failed(&path, "name the fleet", e))?;
        audit::adopt(&mut writer)
            .await
            .map_err(|e| failed(&path, "chain the audit log", e))?;

        let readers = SqlitePoolOptions::new()
            .max_connections(options.readers.max(1))
            .min_connections(0)
            .idle_timeout(Duration::from_secs(60))
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_lazy_with(connect.clone().read_only(true));
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                options: connect,
                writer: Mutex::new(Some(writer)),
                readers,
                snapshotting: Mutex::new(()),
                _lock: lock,
            }),
        })
    }

    /// Closes every connection; the write-ahead log is folded into the file.
    pub async fn close(&self) -> Result<(), Error> {
        use sqlx::Connection;
        self.shared.readers.close().await;
        match self.shared.writer.lock().await.take() {
            Some(writer) => writer
                .close()
                .await
                .map_err(|e| self.shared.failed("close the store", e)),
            None => Ok(()),
        }
    }

    /// Runs `work` to its end even when the caller goes away.
    async fn detached<T, F>(&self, action: &'static str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        tokio::spawn(work)
            .await
            .unwrap_or_else(|join| Err(database(action, join)))
    }
}

impl Shared {
    fn failed(&self, action: &'static str, error: sqlx::Error) -> Error {
        failed(&self.path, action, error)
    }

    /// The one writing connection, opened anew when the last one was given up.
    async fn writer(&self) -> Result<MutexGuard<'_, Option<SqliteConnection>>, Error> {
        let mut writer = self.writer.lock().await;
        if writer.is_none() {
            let opened = self.options.connect().await;
            *writer = Some(opened.map_err(|e| self.failed("open the store again", e))?);
        }
        Ok(writer)
    }

    /// `work` in one transaction: all of it or nothing.
    ///
    /// BEGIN and the rest are plain statements, because SQLite may roll back by
    /// itself (disk full), which a counting wrapper does not notice.
    async fn transaction<T>(
        &self,
        action: &'static str,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut guard = self.writer().await?;
        let Some(connection) = guard.as_mut() else {
            return Err(database(action, "no connection"));
        };
        let done = async {
            execute(connection, "BEGIN IMMEDIATE")
                .await
                .map_err(|e| self.failed(action, e))?;
            let value = work(connection).await?;
            execute(connection, "COMMIT")
                .await
                .map_err(|e| self.failed(action, e))?;
            Ok(value)
        }
        .await;
        if done.is_err() && !rolled_back(connection).await {
            // In doubt: a fresh connection sees what the file really holds.
            *guard = None;
        }
        done
    }
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

/// Whether the connection is surely outside of any transaction.
async fn rolled_back(connection: &mut SqliteConnection) -> bool {
    match execute(connection, "ROLLBACK").await {
        Ok(()) => true,
        Err(error) => error.to_string().contains("no transaction is active"),
    }
}

fn connect_options(database: &std::path::Path, max_bytes: Option<u64>) -> SqliteConnectOptions {
    const PAGE: u64 = 4096;
    let options = SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .page_size(4096)
        // KiB: bounds resident memory; the kernel caches the file anyway.
        .pragma("cache_size", "-1024")
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();
    match max_bytes {
        Some(bytes) => options.pragma("max_page_count", (bytes / PAGE).max(1).to_string()),
        None => options,
    }
}

async fn migrate(path: &str, writer: &mut SqliteConnection) -> Result<(), Error> {
    use sqlx::migrate::MigrateError;
    let ours = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    match MIGRATIONS.run(&mut *writer).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => Err(Error::NewerTables {
            path: path.to_owned(),
            found,
            ours,
        }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(failed(path, "upgrade the store", error))
        }
        Err(error) => Err(Error::Unusable {
            path: path.to_owned(),
            detail: format!("{error}; restore the state folder from a backup"),
        }),
    }
}

fn database(
    action: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Database {
        action,
        source: source.into(),
    }
}

/// SQLite's words, so that the next step is plain.
fn failed(path: &str, action: &'static str, error: sqlx::Error) -> Error {
    let path = path.to_owned();
    let code = error
        .as_database_error()
        .and_then(|e| e.code())
        .and_then(|code| code.parse::<i32>().ok());
    // The low byte is the primary result code.
    match code.map(|code| code & 0xff) {
        Some(13) => Error::Full { path },
        Some(8) => Error::ReadOnly {
            path,
            detail: error.to_string(),
        },
        Some(14) => Error::Unusable {
            path,
            detail: format!("{error}; check that the state folder is there and writable"),
        },
        Some(11 | 26) => Error::Unusable {
            path,
            detail: format!("{error}; restore the state folder from a backup"),
        },
        _ => database(action, error),
    }
}

/// SQLite's integers are signed; ids and times stay far below the limit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Store for Sqlite {
    async fn load(&self) -> Result<Loaded, Error> {
        let shared = Arc::clone(&self.shared);
        self.detached("load", async move { snapshot::load(&shared).await })
            .await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, Error> {
        let shared = Arc::clone(&self.shared);
        self.detached(
            "commit",
            async move { commit::commit(&shared, commit).await },
        )
        .await
    }

    async fn raise_epoch(&self, expected: u64, at_least: u64) -> Result<Raised, Error> {
        let shared = Arc::clone(&self.shared);
        self.detached("raise the epoch", async move {
            commit::raise_epoch(&shared, expected, at_least).await
        })
        .await
    }

    async fn write_snapshot(
        &self,
        expected_epoch: u64,
        sequence: u64,
        facts: Vec<Fact>,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        self.detached("write a snapshot", async move {
            snapshot::write(&shared, expected_epoch, sequence, &facts).await
        })
        .await
    }

    async fn facts_after(&self, after: u64, limit: u32) -> Result<Vec<(u64, Fact)>, Error> {
        snapshot::facts_after(&self.shared, after, limit).await
    }

    async fn jobs(&self, query: JobQuery) -> Result<Page<JobRow>, Error> {
        read::jobs(&self.shared, query).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRow>, Error> {
        read::job(&self.shared, id).await
    }

    async fn runners(&self, query: RunnerQuery) -> Result<Page<RunnerRow>, Error> {
        read::runners(&self.shared, query).await
    }

    async fn runners_by_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<RunnerRow>, Error> {
        read::runners_by_prefix(&self.shared, prefix, limit).await
    }

    async fn repository_counts(
        &self,
        since: UtcMillis,
        after: Option<String>,
    ) -> Result<Vec<RepositoryCounts>, Error> {
        read::repository_counts(&self.shared, since, after).await
    }

    async fn setting(&self, key: &str) -> Result<Option<String>, Error> {
        read::setting(&self.shared, key).await
    }

    async fn records(&self, kind: &str) -> Result<Vec<(String, String)>, Error> {
        read::records(&self.shared, kind).await
    }

    async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditRow>, Error> {
        audit::read(&self.shared, query).await
    }

    async fn audit_ends(&self) -> Result<chain::Ends, Error> {
        audit::ends(&self.shared).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        tokens::read(&self.shared).await
    }

    async fn prune(
        &self,
        history_before: UtcMillis,
        audit_before: UtcMillis,
        limit: u32,
    ) -> Result<u64, Error> {
        let shared = Arc::clone(&self.shared);
        self.detached("prune", async move {
            commit::prune(&shared, history_before, audit_before, limit).await
        })
        .await
    }
}
