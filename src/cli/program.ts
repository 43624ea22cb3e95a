import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { backupCommands } from '../backup/commands.ts';
import { catalogCommands } from '../catalog/commands.ts';
import { vaultCommands } from '../catalog/vault-commands.ts';
import { RouseError } from '../errors.ts';
import { nearest } from '../lib/text.ts';
import { reconcileCommands } from '../recovery/reconcile-commands.ts';
import { proxyCommands } from '../placement/commands.ts';
import { recoveryCommands } from '../recovery/commands.ts';
import { completionCommand } from './completion.ts';
import { enrolCommand } from './enrol.ts';
import { byOption, tellError } from './errors.ts';
import { roleCommands } from './roles.ts';
import type { GlobalOptions, ProcessTerminal } from './terminal.ts';

/**
 * The command line: the commands of every feature in one program. Features say what they offer in
 * their commands.ts; here is what all share: global options, help, errors and exit codes.
 */
export function createProgram(
  terminal: ProcessTerminal,
  began: (command: Command) => void = () => undefined,
): Command {
  const program = new Command('rouse')
    .description('Wakes a virtual machine from its deduplicated backup, over NFS, in seconds.')
    .version(version(), '-V, --version', 'show the version')
    .helpOption('-h, --help', 'show help')
    .option('--data <dir>', 'where everything lives (ROUSE_DATA)')
    .option('--server <url>', 'a server elsewhere: unix:/path or http://127.0.0.1:PORT')
    .option('--json', 'answer in JSON of a stable shape')
    .configureHelp({ showGlobalOptions: true, helpWidth: 80 })
    .configureOutput({
      writeOut: (text) => void terminal.surroundings.stdout.write(text),
      // Errors are told by tellError, in two lines.
      writeErr: () => undefined,
      outputError: () => undefined,
    })
    .exitOverride()
    .addHelpText('after', introduction);
  program.hook('preAction', (_, command) => {
    terminal.configure(command.optsWithGlobals<GlobalOptions>());
    began(command);
  });
  roleCommands(program, terminal);
  catalogCommands(program, terminal);
  backupCommands(program, terminal);
  recoveryCommands(program, terminal);
  reconcileCommands(program, terminal);
  vaultCommands(program, terminal);
  proxyCommands(program, terminal);
  enrolCommand(program, terminal);
  completionCommand(program, terminal);
  return program;
}

const introduction = `
Begin with:
  rouse up                                     start it
  rouse hypervisor add lab qemu:///system      tell it of a hypervisor
  rouse backup web01                           back a machine up
  rouse recover web01 --power-on               wake it from its backup

Every command has --help with an example.`;

/** Runs one command to its end; answers the exit code. */
export async function runCommandLine(
  values: readonly string[],
  terminal: ProcessTerminal,
): Promise<number> {
  // Known before parsing, so that errors of parsing are JSON as well.
  terminal.configure({ json: values.includes('--json') });
  let running: Command | undefined;
  const program = createProgram(terminal, (command) => {
    running = command;
  });
  try {
    if (values.length === 0) {
      program.outputHelp();
      return 0;
    }
    await program.parseAsync(values, { from: 'user' });
    return 0;
  } catch (error) {
    if (terminal.surroundings.environment['ROUSE_TRACE'] === '1') console.error(error);
    const told = byOption(mendSuggestion(error, values, program), running);
    return tellError(told, terminal);
  } finally {
    terminal.close();
  }
}

/** Names the commands that may have been meant, and the help of the command that was used. */
function mendSuggestion(error: unknown, values: readonly string[], program: Command): unknown {
  if (!(error instanceof CommanderError) || error.exitCode === 0) return error;
  let command = program;
  for (const value of values) {
    const next: Command | undefined = command.commands.find((entry) => entry.name() === value);
    if (next !== undefined) command = next;
  }
  const path = command === program ? 'rouse' : `rouse ${pathOf(command)}`;
  if (error.code === 'commander.unknownCommand' || isUnknownSubcommand(error, command)) {
    const word = /'([^']*)'/.exec(error.message)?.[1] ?? unknownWord(values, command);
    const names = command.commands.map((entry) => entry.name()).filter((name) => name !== 'help');
    const near = nearest(word, names, 1)[0];
    const advice = near === undefined ? `See ${path} --help.` : `Did you mean ${near}?`;
    return new RouseError('bad-request', `there is no command "${word}"`, { advice });
  }
  if (error.message.includes('Did you mean')) return error;
  if (error.code === 'commander.help') {
    const advice = `See ${path} --help.`;
    return new RouseError('bad-request', `${path} needs a command`, { advice });
  }
  const message = error.message.replace(/^error: /, '').split('\n')[0] ?? '';
  return new RouseError('bad-request', message.replace(/\.$/, ''), {
    advice: `See ${path} --help.`,
  });
}

function isUnknownSubcommand(error: CommanderError, command: Command): boolean {
  return error.code === 'commander.excessArguments' && command.commands.length > 0;
}

function unknownWord(values: readonly string[], command: Command): string {
  return values.slice(values.indexOf(command.name()) + 1).find((value) => value[0] !== '-') ?? '';
}

function pathOf(command: Command): string {
  const names: string[] = [];
  for (let at: Command | null = command; at?.parent; at = at.parent) names.unshift(at.name());
  return names.join(' ');
}

function version(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { readonly version: string }).version;
}
