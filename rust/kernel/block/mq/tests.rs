// SPDX-License-Identifier: GPL-2.0

//! Unit tests with a disk.

#[crate::macros::kunit_tests(rust_block_mq)]
mod disk {
    use crate::{
        block::{
            mq::{
                tag_set::Flag,
                DiskOperations,
                GenDisk,
                GenDiskBuilder,
                IdleRequest,
                Operations,
                OwnedRequest,
                Rejected,
                TagSet, //
            },
            BlkStatus, //
        },
        macros::vtable,
        page::PAGE_SIZE,
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc,
            ArcBorrow,
            Completion, //
        }, //
    };

    /// How many values of [`Counted`] there are.
    static COUNTED: Atomic<i32> = Atomic::new(0);

    struct Counted;

    impl Counted {
        fn new() -> Self {
            COUNTED.fetch_add(1, Relaxed);
            Self
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            COUNTED.fetch_sub(1, Relaxed);
        }
    }

    /// What the driver has done, and does with the next requests.
    #[pin_data]
    struct Log {
        /// How many of the next requests are rejected.
        rejects: Atomic<i32>,
        /// The error that requests are rejected with.
        error: Error,
        queued: Atomic<i32>,
        completed: Atomic<i32>,
        #[pin]
        freed: Completion,
    }

    struct Queue;

    #[vtable]
    impl Operations for Queue {
        type RequestData = Counted;
        type Disk = Disk;
        type QueueData = ();

        fn new_request_data() -> impl PinInit<Counted> {
            Counted::new()
        }

        fn queue_rq(
            _data: Option<ArcBorrow<'_, ()>>,
            _hctx: u32,
            rq: IdleRequest<Self>,
            _is_last: bool,
        ) -> Result<(), Rejected<Self>> {
            let log = rq.disk().data();
            log.queued.fetch_add(1, Relaxed);
            if log.rejects.fetch_sub(1, Relaxed) > 0 {
                let error = log.error;
                return Err(rq.reject(error));
            }
            rq.start().complete();
            Ok(())
        }

        fn complete(rq: OwnedRequest<Self>) {
            rq.disk().data().completed.fetch_add(1, Relaxed);
            rq.end(BlkStatus::OK);
        }
    }

    struct Disk;

    #[vtable]
    impl DiskOperations for Disk {
        type Data = Log;
        type Queue = Queue;

        fn free(log: Arc<Log>) {
            log.freed.complete_all();
        }
    }

    fn tag_set() -> Result<Arc<TagSet<Queue>>> {
        Arc::pin_init(
            TagSet::new(1, 16, 1, Flag::Blocking | Flag::NoDefaultScheduler),
            GFP_KERNEL,
        )
    }

    /// Adds a disk that rejects the first `rejects` requests with `error`, which makes the block
    /// layer read its first sectors, and removes it. Returns how many requests were queued, and how
    /// many completed.
    fn scan(rejects: i32, error: Error) -> Result<(i32, i32)> {
        let log = Arc::pin_init(
            pin_init!(Log {
                rejects: Atomic::new(rejects),
                error,
                queued: Atomic::new(0),
                completed: Atomic::new(0),
                freed <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let sectors = 8 * (PAGE_SIZE as u64 >> crate::block::SECTOR_SHIFT);
        drop(
            GenDiskBuilder::new()
                .capacity_sectors(sectors)
                .build::<Disk>(fmt!("rust_block_mq"), tag_set()?, log.clone())?,
        );
        log.freed.wait_for_completion();
        Ok((log.queued.load(Relaxed), log.completed.load(Relaxed)))
    }

    #[test]
    fn request_data_lives_as_long_as_the_tag_set() -> Result {
        let before = COUNTED.load(Relaxed);
        let tag_set = tag_set()?;
        assert_eq!(COUNTED.load(Relaxed), before + 16);
        drop(tag_set);
        assert_eq!(COUNTED.load(Relaxed), before);
        scan(0, EIO)?;
        assert_eq!(COUNTED.load(Relaxed), before);
        Ok(())
    }

    #[test]
    fn hardware_queues_are_limited() -> Result {
        let tag_set = tag_set()?;
        assert_eq!(tag_set.hw_queue_count(), 1);
        assert_eq!(tag_set.update_hw_queue_count(0), Err(EINVAL));
        assert_eq!(tag_set.update_hw_queue_count(u32::MAX), Err(EINVAL));
        let cpus = crate::cpu::nr_cpu_ids();
        tag_set.update_hw_queue_count(cpus + 1)?;
        assert_eq!(tag_set.hw_queue_count(), cpus);
        tag_set.update_hw_queue_count(1)?;
        assert_eq!(tag_set.hw_queue_count(), 1);
        Ok(())
    }

    #[test]
    fn tag_set_without_tags_fails() {
        let set = TagSet::<Queue>::new(1, 0, 1, Flag::Blocking);
        assert_eq!(Arc::pin_init(set, GFP_KERNEL).err(), Some(EINVAL));
    }

    #[test]
    fn completed_requests_finish() -> Result {
        let (queued, completed) = scan(0, EIO)?;
        assert!(queued > 0);
        assert_eq!(queued, completed);
        Ok(())
    }

    #[test]
    fn request_without_memory_is_tried_again() -> Result {
        let (queued, completed) = scan(2, ENOMEM)?;
        assert!(completed > 0);
        assert_eq!(queued, completed + 2);
        Ok(())
    }

    #[test]
    fn rejected_request_fails() -> Result {
        let (queued, completed) = scan(i32::MAX, EIO)?;
        assert!(queued > 0);
        assert_eq!(completed, 0);
        Ok(())
    }

    #[test]
    fn name_that_is_too_long_fails() -> Result {
        let log = Arc::pin_init(
            pin_init!(Log {
                rejects: Atomic::new(0),
                error: EIO,
                queued: Atomic::new(0),
                completed: Atomic::new(0),
                freed <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let name = "a name of more than thirty-two bytes";
        let disk = GenDiskBuilder::new().build::<Disk>(fmt!("{name}"), tag_set()?, log);
        assert!(disk.is_err());
        Ok(())
    }

    /// A `GenDisk` can be sent to, and used by, any thread.
    const _: () = {
        const fn check<T: Send + Sync>() {}
        check::<GenDisk<Disk>>();
        check::<TagSet<Queue>>();
    };
}
