import { type Command, CommanderError } from 'commander';
import { isRouseError, RouseError, systemErrorCode } from '../errors.ts';
import { Interrupted } from '../lib/terminal.ts';
import { printable } from '../lib/text.ts';
import type { ProcessTerminal } from './terminal.ts';

/**
 * Every error at the terminal: one line what was wrong, one line what to do; with `--json` the
 * problem as JSON. Answers the exit code of the error's table.
 */
export function tellError(error: unknown, terminal: ProcessTerminal): number {
  if (error instanceof Interrupted) return 130;
  const known = expected(error);
  if (known === undefined) return 0;
  if (terminal.json) {
    terminal.note(JSON.stringify(known.toProblem()));
  } else {
    terminal.note(`${terminal.paintNote('red', 'rouse:')} ${oneLine(known.message)}`);
    terminal.note(`→ ${oneLine(known.advice)}`);
  }
  return known.exitCode;
}

/** Messages of hypervisors have several lines; nothing they hold may move the cursor. */
function oneLine(text: string): string {
  return printable(text.trim().replaceAll(/\s*\n\s*/g, '; '));
}

/** undefined: help or the version was shown, which is no error. */
function expected(error: unknown): RouseError | undefined {
  if (error instanceof RouseError) return error;
  if (error instanceof CommanderError) return commanderError(error);
  if (systemErrorCode(error) === 'EPIPE') return undefined;
  const message = error instanceof Error ? error.message : String(error);
  return new RouseError('internal', `something unexpected happened: ${message}`, {
    cause: error,
    advice: 'Run it again with ROUSE_TRACE=1 to see where, and report that.',
  });
}

/** "error: unknown option '--hots'\n(Did you mean --host?)" in our two lines. */
function commanderError(error: CommanderError): RouseError | undefined {
  if (error.exitCode === 0 || error.code === 'commander.help') return undefined;
  const [first = '', ...rest] = error.message.split('\n');
  const hint = /\((Did you mean [^)]*)\)/.exec(rest.join(' '))?.[1];
  const message = first.replace(/^error: /, '').replace(/\.$/, '');
  return new RouseError('bad-request', message, { advice: hint ?? 'See rouse --help.' });
}

const optionOfField: Readonly<Record<string, string>> = {
  leaseMs: 'lease',
  clients: 'client',
  bandwidthBytesPerSecond: 'bandwidth',
  'files.name': 'name',
  'files.configuration': 'config',
  'files.nvram': 'nvram',
  'files.disks': 'file',
  datastores: 'datastore',
};

/** What the server found wrong with a field, by the option or argument that the person wrote. */
export function byOption(error: unknown, command: Command | undefined): unknown {
  if (!isRouseError(error, 'bad-request') || command === undefined) return error;
  const fields = error.details?.['fields'];
  if (!Array.isArray(fields)) return error;
  const known = new Set(command.options.map((option) => option.long));
  let message = error.message;
  for (const { field } of fields as readonly { readonly field: string }[]) {
    const alias = Object.keys(optionOfField).find(
      (name) => field === name || field.startsWith(`${name}.`),
    );
    const name = alias === undefined ? kebab(field) : (optionOfField[alias] ?? '');
    if (field !== '' && known.has(`--${name}`)) message = message.replace(field, `--${name}`);
  }
  const { advice, details } = error;
  return new RouseError('bad-request', message, {
    advice,
    cause: error,
    ...(details === undefined ? {} : { details }),
  });
}

function kebab(field: string): string {
  return field.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}
