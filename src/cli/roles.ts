import type { Command } from 'commander';
import type { UpOptions } from '../config.ts';
import { RouseError } from '../errors.ts';
import { examples, repeated, type Terminal } from '../lib/terminal.ts';
import { parseBytes } from '../lib/text.ts';

/** `rouse up`, and the two roles that it starts as processes of their own. */
interface UpFlags {
  readonly nfsPort?: string;
  readonly mountPort?: string;
  readonly portmap?: 'auto' | 'bind' | 'register' | 'off';
  readonly portmapPort?: string;
  readonly listen?: readonly string[];
  readonly address?: readonly string[];
  readonly cache?: string;
  readonly vault?: string;
  readonly tlsPort?: string;
  readonly tlsListen?: string;
}

export function roleCommands(program: Command, terminal: Terminal): void {
  const portmap = program
    .createOption('--portmap <how>', 'bind port 111, register with a running rpcbind, or off')
    .choices(['auto', 'bind', 'register', 'off']);
  const up = program
    .command('up')
    .description('start server and proxy on this machine and keep them running')
    .option('--nfs-port <port>', 'TCP port of NFS, 0 for any free one (default: 2049)')
    .option('--mount-port <port>', 'TCP port of MOUNT (default: that of NFS)')
    .addOption(portmap)
    .option('--portmap-port <port>', 'another port for the portmapper (default: 111)')
    .option('--listen <address>', 'where NFS listens (repeatable; default: everywhere)', repeated)
    .option(
      '--address <address>',
      'where hypervisor hosts reach this machine (repeatable)',
      repeated,
    )
    .option('--cache <size>', 'bound of the block cache, such as 2G')
    .option('--vault <dir>', 'directory of the vault (default: DIR/vault)')
    .option('--tls-port <port>', 'where proxies of other machines join (default: nowhere)')
    .option('--tls-listen <address>', 'and on which address (default: everywhere)')
    .action(async (flags: UpFlags) => {
      const options = upOptions(flags, terminal);
      const { runUp } = await import('../main.ts');
      await runUp(options, (line) => terminal.print(line));
    });
  examples(up, [
    'rouse up',
    'rouse up --data /srv/rouse --cache 4G',
    'rouse up --tls-port 9443 --address 192.0.2.7',
    'rouse up --data ./try --nfs-port 0 --portmap off',
  ]);
  program
    .command('role', { hidden: true })
    .argument('<role>')
    .action(async (role: string) => {
      const { runProxy, runServer } = await import('../main.ts');
      await (role === 'proxy' ? runProxy : runServer)(inheritedOptions(terminal));
    });
}

function upOptions(flags: UpFlags, terminal: Terminal): UpOptions {
  const { nfsPort, mountPort, portmap, portmapPort, listen, address, cache, vault } = flags;
  const { tlsPort, tlsListen } = flags;
  return {
    data: terminal.dataDirectory,
    ...(nfsPort === undefined ? {} : { nfsPort: portOf('--nfs-port', nfsPort) }),
    ...(mountPort === undefined ? {} : { mountPort: portOf('--mount-port', mountPort) }),
    ...(portmap === undefined ? {} : { portmap }),
    ...(portmapPort === undefined ? {} : { portmapPort: portOf('--portmap-port', portmapPort) }),
    ...(listen === undefined ? {} : { listen }),
    ...(address === undefined ? {} : { address }),
    ...(cache === undefined ? {} : { cacheBytes: parseBytes(cache) }),
    ...(vault === undefined ? {} : { vault }),
    ...(tlsPort === undefined ? {} : { tlsPort: portOf('--tls-port', tlsPort) }),
    ...(tlsListen === undefined ? {} : { tlsListen }),
  };
}

function portOf(option: string, text: string): number {
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port <= 65_535) return port;
  throw new RouseError('bad-request', `${option} "${text}" is not a port`, {
    advice: 'Give a number from 1 to 65535, or 0 for any free port.',
  });
}

/** `up` hands its options to the processes that it starts. */
function inheritedOptions(terminal: Terminal): UpOptions {
  const text = process.env['ROUSE_UP_OPTIONS'];
  if (text === undefined) return { data: terminal.dataDirectory };
  return JSON.parse(text) as UpOptions;
}
