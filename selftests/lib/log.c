// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's log.
 */
#include "nbd_test.h"

/* What is logged from now on, or -errno. */
int log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	lseek(fd, 0, SEEK_END);
	return fd;
}

/* The text of the next message, "" where some are lost, or NULL if there are no more. */
const char *log_next(int log)
{
	static char line[8192];
	ssize_t n = read(log, line, sizeof(line) - 1);
	char *text;

	if (n <= 0)
		return n < 0 && errno == EPIPE ? "" : NULL;
	line[n] = 0;
	text = strchr(line, ';');
	if (!text)
		return "";
	text[strcspn(text, "\n")] = 0;
	return text + 1;
}

/* Is there a new message about this device with all of these words? Those about it are shown. */
bool logged(int log, struct nbd_dev *d, const char *const words[])
{
	const char *text;
	bool found = false;
	char name[32];
	int i;

	snprintf(name, sizeof(name), "nbd%d:", d->index);
	while ((text = log_next(log))) {
		if (!strstr(text, name))
			continue;
		fprintf(stderr, "# log: %s\n", text);
		for (i = 0; words[i] && strstr(text, words[i]); i++)
			;
		found = found || !words[i];
	}
	return found;
}
