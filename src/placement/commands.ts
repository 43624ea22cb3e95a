import type { Command } from 'commander';
import { RouseError } from '../errors.ts';
import { type Commands, examples, repeated, type Terminal } from '../lib/terminal.ts';
import { formatBytes, formatDuration, plural, printable, wrapText } from '../lib/text.ts';
import { formatRelative, formatTime, tryDuration } from '../lib/times.ts';
import type { ProxyChange, ProxyToken, ProxyView } from './schema.ts';

/** `rouse proxy list`, `show`, `drain`, `set`, `remove`, `token`; enrolling is cli/enrol.ts. */
export const proxyCommands: Commands = (program, terminal) => {
  const group = program.command('proxy').description('the proxies, close to the hypervisors');
  addList(group, terminal);
  addShow(group, terminal);
  addDrain(group, terminal);
  addSet(group, terminal);
  addRemove(group, terminal);
  addToken(group, terminal);
};

const pathOf = (name: string) => `/v1/proxies/${encodeURIComponent(name)}`;

function addList(group: Command, terminal: Terminal): void {
  const command = group
    .command('list')
    .description('list the proxies: how they are, and how busy')
    .action(async () => {
      const client = await terminal.client();
      const answer = (await client.get('/v1/proxies')) as { readonly proxies: ProxyView[] };
      terminal.answer(answer, () => {
        printList(answer.proxies, terminal);
        for (const { name, problem } of answer.proxies) {
          if (problem === null) continue;
          for (const line of wrapText(`! ${name}: ${problem}`, terminal.width)) {
            terminal.print(terminal.paint('yellow', line));
          }
        }
      });
    });
  examples(command, ['rouse proxy list', 'rouse proxy list --json']);
}

function printList(proxies: readonly ProxyView[], terminal: Terminal): void {
  const nowMs = terminal.clock.now();
  terminal.table(
    [
      { title: 'name', flexible: true, minWidth: 6 },
      { title: 'state', minWidth: 9 },
      { title: 'address', flexible: true, minWidth: 9 },
      { title: 'version', flexible: true, minWidth: 5 },
      { title: 'load', align: 'right', minWidth: 4 },
      { title: 'exports', align: 'right', minWidth: 7 },
      { title: 'heard', minWidth: 8 },
    ],
    proxies.map(({ name, state, problem, addresses, status, heartbeatMs }) => [
      name,
      problem === null ? state : 'refused',
      addresses[0] ?? '',
      status?.version ?? '',
      status === null ? '' : `${Math.round(status.load * 100)} %`,
      status === null ? '' : String(status.exports),
      heartbeatMs === null ? 'never' : `${formatDuration(Math.max(0, nowMs - heartbeatMs))} ago`,
    ]),
    'No proxy is known.',
  );
}

function addShow(group: Command, terminal: Terminal): void {
  const command = group
    .command('show')
    .description('show one proxy, with what it last said of itself')
    .argument('<proxy>', 'its name')
    .action(async (name: string) => {
      const client = await terminal.client();
      const view = (await client.get(pathOf(name))) as ProxyView;
      terminal.answer(view, () => printOne(view, terminal));
    });
  examples(command, ['rouse proxy show edge1']);
}

function printOne(view: ProxyView, terminal: Terminal): void {
  const nowMs = terminal.clock.now();
  const fact = (name: string, value: string | null) => {
    if (value !== null && value !== '') terminal.print(`${name.padEnd(13)}${printable(value)}`);
  };
  const heard = view.heartbeatMs === null ? 'never' : formatRelative(view.heartbeatMs, nowMs);
  fact('Proxy', `${view.name} (${view.kind})`);
  fact('State', `${view.state}, heard of ${heard}`);
  if (view.problem !== null) fact('Problem', view.problem);
  fact('Addresses', view.addresses.join(', '));
  fact('Called at', view.calledAt);
  fact('Labels', pairs(view.labels));
  fact('Only for', view.onlyFor.join(', '));
  fact('Never for', view.neverFor.join(', '));
  fact('Devices', view.devices.map(({ name }) => name).join(', '));
  fact('Recoveries', view.recoveries.map(({ name, id }) => `${name} (${id})`).join(', '));
  if (view.status !== null) printStatus(view.status, fact);
  fact('Certificate', view.fingerprint);
  if (view.certificateEndsMs !== null) {
    fact('', null);
    fact('Valid until', `${formatTime(view.certificateEndsMs)}, renewed by itself before`);
  }
  if (view.skewMs !== null && Math.abs(view.skewMs) > skewShownMs) {
    const apart = formatDuration(Math.abs(view.skewMs));
    const text = `! Its clock is ${apart} ${view.skewMs > 0 ? 'ahead of' : 'behind'} the server's.`;
    terminal.print(terminal.paint('yellow', text));
  }
}

const skewShownMs = 5_000;

function printStatus(
  status: NonNullable<ProxyView['status']>,
  fact: (name: string, value: string) => void,
): void {
  const { nfs, cache, space } = status;
  fact('Version', `${status.version}, process ${status.pid}`);
  fact('NFS', `port ${nfs.port}, MOUNT ${nfs.mountPort}, portmapper ${nfs.portmapper}`);
  fact('Networks', status.networks.join(', '));
  fact('Load', `${Math.round(status.load * 100)} %, ${plural(status.jobs, 'job')}`);
  fact('Serves', `${plural(status.clones, 'clone')}, ${plural(status.exports, 'export')}`);
  const free = formatBytes(cache.boundBytes - cache.usedBytes);
  fact('Cache', `${free} free of ${formatBytes(cache.boundBytes)}`);
  fact('Space', `${formatBytes(space.freeBytes)} free of ${formatBytes(space.totalBytes)}`);
  fact('Vault', status.vault.path);
}

function pairs(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(', ');
}

function addDrain(group: Command, terminal: Terminal): void {
  const command = group
    .command('drain')
    .description('give a proxy no new work; what runs there goes on')
    .argument('<proxy>', 'its name')
    .option('--undo', 'give it work again')
    .action(async (name: string, options: { readonly undo?: true }) => {
      const client = await terminal.client();
      const request = { undo: options.undo ?? false };
      const view = (await client.post(`${pathOf(name)}/drain`, request)) as ProxyView;
      terminal.answer(view, () => {
        if (!view.draining) return terminal.print(`${printable(view.name)} takes work again.`);
        const left = plural(view.recoveries.length, 'recovery');
        terminal.print(`${printable(view.name)} is draining; ${left} it still serves.`);
        terminal.print(`→ rouse proxy drain ${view.name} --undo   gives it work again`);
      });
    });
  examples(command, ['rouse proxy drain edge1', 'rouse proxy drain edge1 --undo']);
}

interface SetOptions {
  readonly label?: readonly string[];
  readonly only?: readonly string[];
  readonly never?: readonly string[];
  readonly anywhere?: true;
}

function addSet(group: Command, terminal: Terminal): void {
  const command = group
    .command('set')
    .description("change a proxy's labels, and whom it serves")
    .argument('<proxy>', 'its name')
    .option('--label <key=value>', 'all its labels from now on (repeatable)', repeated)
    .option('--only <name>', 'serve this hypervisor, cluster or host alone (repeatable)', repeated)
    .option('--never <name>', 'serve all but this one (repeatable)', repeated)
    .option('--anywhere', 'neither --only nor --never any more')
    .action(async (name: string, options: SetOptions) => {
      const client = await terminal.client();
      const view = (await client.post(pathOf(name), changeOf(options))) as ProxyView;
      terminal.answer(view, () => printOne(view, terminal));
    });
  examples(command, [
    'rouse proxy set edge1 --label site=paris --label cluster=production',
    'rouse proxy set edge1 --only production',
  ]);
}

function changeOf({ label, only, never, anywhere }: SetOptions): ProxyChange {
  const nowhere = anywhere === undefined ? {} : { onlyFor: [], neverFor: [] };
  const change: ProxyChange = {
    ...nowhere,
    ...(label === undefined ? {} : { labels: labelsOf(label) }),
    ...(only === undefined ? {} : { onlyFor: [...only] }),
    ...(never === undefined ? {} : { neverFor: [...never] }),
  };
  if (Object.keys(change).length > 0) return change;
  throw new RouseError('bad-request', 'proxy set needs something to change', {
    advice: 'Give --label, --only, --never or --anywhere.',
  });
}

/** `site=paris`, several times. */
export function labelsOf(texts: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    texts.map((text) => {
      const at = text.indexOf('=');
      if (at > 0) return [text.slice(0, at), text.slice(at + 1)];
      throw new RouseError('bad-request', `"${text}" is not a label`, {
        advice: 'Write KEY=VALUE, such as site=paris.',
      });
    }),
  );
}

function addRemove(group: Command, terminal: Terminal): void {
  const command = group
    .command('remove')
    .description('forget an enrolled proxy; its certificate is refused from now on')
    .argument('<proxy>', 'its name')
    .action(async (name: string) => {
      const client = await terminal.client();
      await client.delete(pathOf(name));
      terminal.answer({ removed: name }, () => {
        terminal.print(`${printable(name)} is removed; its certificate is refused from now on.`);
      });
    });
  examples(command, ['rouse proxy remove edge1']);
}

interface TokenOptions {
  readonly name?: string;
  readonly expires?: string;
  readonly address?: string;
}

function addToken(group: Command, terminal: Terminal): void {
  const command = group
    .command('token')
    .description('print a token with which one proxy on another machine joins, once')
    .option('--name <name>', 'for this name alone; a known proxy joins anew')
    .option('--expires <duration>', 'how long it is good (default: 1h)')
    .option('--address <address>', 'where the other machine reaches this server')
    .action(async ({ name, expires, address }: TokenOptions) => {
      const client = await terminal.client();
      const answer = (await client.post('/v1/proxy-tokens', {
        ...(name === undefined ? {} : { name }),
        ...(expires === undefined ? {} : { lifeMs: parseDuration(expires) }),
        ...(address === undefined ? {} : { address }),
      })) as ProxyToken;
      terminal.answer(answer, () => {
        const nowMs = terminal.clock.now();
        const until = formatTime(answer.expiresMs);
        terminal.print(`Server       ${answer.server}`);
        terminal.print(`Fingerprint  ${answer.fingerprint.slice(0, 47)}`);
        terminal.print(`             ${answer.fingerprint.slice(48)}`);
        terminal.print(`Good until   ${until} (${formatRelative(answer.expiresMs, nowMs)}), once`);
        terminal.print('');
        terminal.print('On the other machine:');
        const named = answer.name === null ? '' : ` --name ${answer.name}`;
        terminal.print(
          `→ rouse proxy enrol --server ${answer.server}${named} --token ${answer.token}`,
        );
      });
    });
  examples(command, ['rouse proxy token', 'rouse proxy token --name edge1 --expires 10min']);
}

function parseDuration(text: string): number {
  const lifeMs = tryDuration(text);
  if (lifeMs !== undefined && lifeMs > 0) return lifeMs;
  throw new RouseError('bad-request', `--expires "${text}" is not a duration`, {
    advice: 'Write how long, such as 30min or 2h; at most 7d.',
  });
}
