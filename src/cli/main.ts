import { systemClock } from '../lib/clock.ts';
import { runCommandLine } from './program.ts';
import { ProcessTerminal } from './terminal.ts';

/** The entry of the command line: `rouse …`. */
// `rouse machines | head -1`: a reader that has enough is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});
const { stdout, stderr, stdin, env } = process;
const surroundings = { stdout, stderr, stdin, environment: env };
const exitCode = await runCommandLine(
  process.argv.slice(2),
  new ProcessTerminal(systemClock, surroundings),
);
// A role that ended badly has set its own.
process.exitCode ??= exitCode;
