//! Work that may wait for a disk, on threads that may.

use tokio::task::JoinError;

/// What did the work has ended before its end: it panicked, or the node ends. What it has done by then, nobody knows.
#[derive(Debug, thiserror::Error)]
#[error("it was not done: the task ended ({0})")]
pub struct TaskEnded(JoinError);

/// Does this on a thread that may wait for a disk.
///
/// # Errors
/// Its own; [`TaskEnded`].
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<TaskEnded> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(TaskEnded(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_did_not_end_as_it_should_is_said() {
        assert!(blocking(|| Ok::<_, TaskEnded>(7)).await.is_ok_and(|it| it == 7));
        let ended = blocking(|| -> Result<(), TaskEnded> { panic!("on purpose") }).await;
        let said = ended.unwrap_err().to_string();
        assert!(said.starts_with("it was not done: the task ended ("), "{said}");
    }
}
