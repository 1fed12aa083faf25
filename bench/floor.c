/*
 * The floor of a reaction: blocks on a tracefs pipe, and writes as soon as the kernel tells of an
 * interrupt that VFIO has set up. Knows nothing, checks nothing, remembers nothing.
 *
 * floor INSTANCE CPU...: INSTANCE is a tracefs instance that has the event of
 * bench/reaction.py; vector i goes to CPU i modulo their number.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char data[1 << 16];

int main(int count, char **words)
{
	char path[256];
	size_t held = 0;

	snprintf(path, sizeof path, "%s/trace_pipe", words[1]);
	struct pollfd pipe = { .fd = open(path, O_RDONLY | O_NONBLOCK), .events = POLLIN };

	if (pipe.fd < 0)
		return 1;
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t got = read(pipe.fd, data + held, sizeof data - held - 1);

		if (got <= 0) {
			poll(&pipe, 1, -1);
			continue;
		}
		held += got;
		data[held] = '\0';
		char *line = data, *end;

		for (; (end = strchr(line, '\n')); line = end + 1) {
			unsigned int irq, vector;
			char *told = strstr(line, " irq=");

			if (!told || sscanf(told, " irq=%u name=\"vfio-msix[%u]", &irq, &vector) != 2)
				continue;
			const char *cpu = words[2 + vector % (count - 2)];

			snprintf(path, sizeof path, "/proc/irq/%u/smp_affinity_list", irq);
			/* The event is of the request's entry: the file may not be there yet. */
			for (int attempt = 0; attempt < 1000; attempt++) {
				int file = open(path, O_WRONLY);

				if (file >= 0 && write(file, cpu, strlen(cpu)) > 0) {
					close(file);
					break;
				}
				if (file >= 0)
					close(file);
				usleep(20);
			}
		}
		held -= line - data;
		memmove(data, line, held);
	}
}
