// SPDX-License-Identifier: GPL-2.0

#include <linux/sched.h>
#include <linux/sched/signal.h>

__rust_helper bool rust_helper_same_thread_group(struct task_struct *p1,
						 struct task_struct *p2)
{
	return same_thread_group(p1, p2);
}

__rust_helper bool rust_helper_thread_group_live(struct task_struct *task)
{
	return atomic_read(&task->signal->live) > 0;
}
