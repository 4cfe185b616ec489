/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * replay.c - a fuzzer's main() without libFuzzer: runs each file of the directories named on the command line, in the
 * order of their names; if none is named, of the program's own corpus, from the source tree's top. Fails if a directory
 * is not there or has no files: a corpus that was lost is not a pass.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "fuzz.h"

#define INPUT_BYTES_MAX (1u << 20) /* far more than a corpus should have in one file */

static int complain(const char *what, const char *name, const char *reason)
{
	fprintf(stderr, "replay: %s %s: %s\n", what, name, reason);
	return -1;
}

/* The input is given as it is long, so that a sanitizer sees a read beyond it. */
static int run_bytes(const uint8_t *bytes, size_t count)
{
	DIOH_AUTO_FREE uint8_t *exact = malloc(count ? count : 1);

	if (!exact)
		return -1;
	memcpy(exact, bytes, count);
	LLVMFuzzerTestOneInput(exact, count);
	return 0;
}

static int run_file(int directory, const char *name)
{
	DIOH_AUTO_FREE uint8_t *bytes = malloc(INPUT_BYTES_MAX);
	DIOH_AUTO_FD int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
	size_t count = 0;
	ssize_t n = 1;

	if (!bytes || fd < 0)
		return complain("opening", name, strerror(errno));
	while (n > 0 && count < INPUT_BYTES_MAX) {
		n = read(fd, &bytes[count], INPUT_BYTES_MAX - count);
		if (n < 0)
			return complain("reading", name, strerror(errno));
		count += (size_t)n;
	}
	if (count == INPUT_BYTES_MAX)
		return complain("reading", name, "it is too long");
	printf("%s\n", name);
	fflush(stdout); /* it names what crashed */
	return run_bytes(bytes, count);
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static int run_directory(const char *path)
{
	DIOH_AUTO_FD int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent **entries;
	int count, failed = 0;

	if (directory < 0)
		return complain("opening", path, strerror(errno));
	count = scandir(path, &entries, is_visible, alphasort);
	if (count < 0)
		return complain("listing", path, strerror(errno));
	for (int i = 0; i < count; i++) {
		if (run_file(directory, entries[i]->d_name) < 0)
			failed = -1;
		free(entries[i]);
	}
	free(entries);
	return count > 0 ? failed : complain("listing", path, "it has no files");
}

/* fuzz_NAME has tests/fuzz/corpus/NAME. */
static int run_own(const char *program)
{
	const char *name = strrchr(program, '/') ? strrchr(program, '/') + 1 : program;
	char path[256];

	if (strncmp(name, "fuzz_", 5) == 0)
		name += 5;
	snprintf(path, sizeof(path), "tests/fuzz/corpus/%s", name);
	return run_directory(path);
}

int main(int argc, char **argv)
{
	int failed = argc < 2 && run_own(argv[0]) < 0;

	for (int i = 1; i < argc; i++)
		failed |= run_directory(argv[i]) < 0;
	return failed;
}
