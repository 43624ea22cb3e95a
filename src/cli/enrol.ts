import * as os from 'node:os';
import type { Command } from 'commander';
import { RouseError } from '../errors.ts';
import { familyOf } from '../lib/addresses.ts';
import { examples, repeated, type Terminal } from '../lib/terminal.ts';
import { printable, shellWord } from '../lib/text.ts';
import { labelsOf } from '../placement/commands.ts';
import type { GlobalOptions } from './terminal.ts';

interface EnrolFlags {
  readonly token: string;
  readonly name?: string;
  readonly address?: readonly string[];
  readonly callAddress?: string;
  readonly callPort?: string;
  readonly label?: readonly string[];
}

/**
 * `rouse proxy enrol`: makes this machine a proxy of a server elsewhere. It needs no running server
 * here; the option `--server` that all commands share is the one to join.
 */
export function enrolCommand(program: Command, terminal: Terminal): void {
  const group = program.commands.find((command) => command.name() === 'proxy');
  if (group === undefined) throw new RouseError('internal', 'there is no command proxy');
  const command = group
    .command('enrol')
    .description('make this machine a proxy of a server elsewhere, with a token of that')
    .requiredOption('--token <token>', 'as rouse proxy token printed it')
    .option('--name <name>', "what the proxy is called (default: this machine's name)")
    .option('--address <address>', 'where hypervisor hosts reach it (repeatable)', repeated)
    .option('--call-address <address>', 'where the server reaches it, if elsewhere')
    .option('--call-port <port>', 'TCP port for the calls of the server (default: 9444)')
    .option('--label <key=value>', 'a label for placement (repeatable)', repeated)
    .action(async (flags: EnrolFlags) =>
      enrolHere(flags, command.optsWithGlobals<GlobalOptions>().server, terminal),
    );
  examples(command, [
    'rouse proxy enrol --server https://192.0.2.7:9443 --token rouse-… --data /srv/rouse',
  ]);
}

async function enrolHere(
  flags: EnrolFlags,
  url: string | undefined,
  terminal: Terminal,
): Promise<void> {
  if (url === undefined) {
    throw new RouseError('bad-request', 'proxy enrol needs --server: which one to join?', {
      advice: 'Give it as rouse proxy token printed it: --server https://HOST:PORT',
    });
  }
  const { configOf } = await import('../config.ts');
  const { version } = await import('../main.ts');
  const { enrol } = await import('../proxy/enrol.ts');
  const config = configOf({ data: terminal.dataDirectory });
  const { joinedFile: joined, joiningFile: joining, catalogFile: catalog } = config;
  const { callAddress } = flags;
  const answer = await enrol({
    server: url,
    token: flags.token,
    name: flags.name ?? ownName(),
    addresses: (flags.address ?? []).map((text) => addressOf('--address', text)),
    callAddress: callAddress === undefined ? undefined : addressOf('--call-address', callAddress),
    callPort: portOf(flags.callPort ?? '9444'),
    labels: labelsOf(flags.label ?? []),
    files: { joined, joining, catalog },
    version,
    clock: terminal.clock,
  });
  const { name, server, addresses } = answer;
  terminal.answer({ name, server, addresses, data: config.data }, () => {
    terminal.print(`This machine is proxy ${printable(name)} of ${server}.`);
    terminal.print(`→ rouse up --data ${shellWord(config.data)}   starts it`);
  });
}

/** A host name without its domain, as far as a proxy may be called that. */
function ownName(): string {
  const short = os.hostname().split('.')[0] ?? '';
  return short
    .replaceAll(/[^A-Za-z0-9-]+/g, '-')
    .replaceAll(/^-+|-+$/g, '')
    .slice(0, 40);
}

function addressOf(option: string, text: string): string {
  if (familyOf(text) !== undefined) return text;
  throw new RouseError('bad-request', `${option} "${text}" is not an IP address`, {
    advice: 'Give an address of this machine, such as 192.0.2.7 or 2001:db8::7.',
  });
}

function portOf(text: string): number {
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port <= 65_535) return port;
  throw new RouseError('bad-request', `--call-port "${text}" is not a port`, {
    advice: 'Give a number from 1 to 65535, or 0 for any free port.',
  });
}
