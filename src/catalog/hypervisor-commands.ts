import { readFile } from 'node:fs';
import { promisify } from 'node:util';
import type { Command } from 'commander';
import { RouseError, toRouseError } from '../errors.ts';
import type { TestReport } from '../hypervisors/port.ts';
import { examples, repeated, type Terminal } from '../lib/terminal.ts';
import { printable } from '../lib/text.ts';
import { formatRelative } from '../lib/times.ts';
import type { HypervisorView } from './schema.ts';

/** `rouse hypervisor …`. */
export function addHypervisor(program: Command, terminal: Terminal): void {
  const parent = program
    .command('hypervisor')
    .description('add, list and test hypervisors; see hypervisor --help');
  addHypervisorAdd(parent, terminal);
  const list = parent
    .command('list')
    .description('list the hypervisors that Rouse knows')
    .action(async () => {
      const client = await terminal.client();
      const answer = (await client.get('/v1/hypervisors')) as {
        readonly hypervisors: readonly HypervisorView[];
      };
      terminal.answer(answer, () =>
        terminal.table(
          [
            { title: 'name', flexible: true, minWidth: 8 },
            { title: 'kind', minWidth: 7 },
            { title: 'uri', flexible: true, minWidth: 14, cut: 'middle' },
            { title: 'state', minWidth: 11 },
            { title: 'seen', minWidth: 8 },
            { title: 'datastores', flexible: true, minWidth: 10 },
          ],
          answer.hypervisors.map((entry) => [
            entry.name,
            entry.kind,
            entry.uri,
            entry.state,
            entry.checkedMs === null ? '' : formatRelative(entry.checkedMs, terminal.clock.now()),
            entry.datastores.map((datastore) => datastore.name).join(' '),
          ]),
          'No hypervisor is known. Add one: rouse hypervisor add lab qemu:///system',
        ),
      );
    });
  examples(list, ['rouse hypervisor list']);
  const test = parent
    .command('test')
    .description('show everything that is wrong with one; changes nothing')
    .argument('<hypervisor>', 'name or id')
    .action((reference: string) => testHypervisor(reference, terminal));
  examples(test, ['rouse hypervisor test lab']);
  const remove = parent
    .command('remove')
    .description('forget one; changes nothing on it')
    .argument('<hypervisor>', 'name or id')
    .action(async (reference: string) => {
      const client = await terminal.client();
      await client.delete(`/v1/hypervisors/${encodeURIComponent(reference)}`);
      terminal.answer({ removed: reference }, () =>
        terminal.print(`Rouse does not know ${printable(reference)} any more.`),
      );
    });
  examples(remove, ['rouse hypervisor remove lab']);
}

interface AddOptions {
  readonly datastore?: readonly string[];
  readonly user?: string;
  readonly passwordFile?: string;
  readonly fingerprint?: string;
  readonly ca?: string;
}

function addHypervisorAdd(parent: Command, terminal: Terminal): void {
  const add = parent
    .command('add')
    .description('add a hypervisor once its test is passed')
    .argument('<name>', 'what to call it')
    .argument('<uri>', 'qemu:///system, qemu+ssh://root@host/system, https://vcenter/sdk')
    .option('--datastore <name=path>', 'a directory for production disks (repeatable)', repeated)
    .option('--user <name>', 'vSphere: who Rouse is there')
    .option('--password-file <file>', 'vSphere: a file that holds the password; - is stdin')
    .option('--fingerprint <AA:BB:…>', 'vSphere: SHA-256 of its certificate')
    .option('--ca <file>', 'vSphere: the authority that issued its certificate, PEM')
    .action(async (name: string, uri: string, options: AddOptions) => {
      const request = uri.startsWith('https:')
        ? { name, kind: 'vsphere', uri, ...(await vsphereParts(options)) }
        : { name, kind: 'libvirt', uri, datastores: (options.datastore ?? []).map(datastoreOf) };
      const client = await terminal.client();
      const added = (await client.post('/v1/hypervisors', request)) as HypervisorView;
      terminal.answer(added, () => {
        terminal.print(`${printable(added.name)} is added.`);
        terminal.print('→ rouse machines   shows its machines');
      });
    });
  examples(add, [
    'rouse hypervisor add lab qemu:///system --datastore prod=/srv/images',
    'rouse hypervisor add vc https://vcenter.example/sdk \\',
    '  --user rouse@vsphere.local --password-file vc.password --fingerprint AA:BB:…',
  ]);
}

/** The password leaves this process only once something says whom it goes to. */
async function vsphereParts(options: AddOptions) {
  const { user, passwordFile, fingerprint, ca } = options;
  if ((options.datastore ?? []).length > 0) {
    throw new RouseError('bad-request', '--datastore is for libvirt: a vCenter knows its own', {
      advice: 'Leave it out.',
    });
  }
  const isTrusted = fingerprint !== undefined || ca !== undefined;
  const password =
    isTrusted && passwordFile !== undefined ? await passwordIn(passwordFile) : undefined;
  return {
    ...(user === undefined ? {} : { user }),
    ...(password === undefined ? {} : { password }),
    ...(fingerprint === undefined ? {} : { fingerprint }),
    ...(ca === undefined ? {} : { authority: await textIn(ca, '--ca') }),
  };
}

/** The first line: editors end files with one. */
async function passwordIn(file: string): Promise<string> {
  const [line = ''] = (await textIn(file, '--password-file')).split(/\r?\n/u);
  if (line !== '') return line;
  throw new RouseError('bad-request', `--password-file ${file} holds no password`, {
    advice: 'Write the password into its first line.',
  });
}

async function textIn(file: string, option: string): Promise<string> {
  try {
    return await promisify(readFile)(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    throw toRouseError(error, `${option} ${file}`);
  }
}

function datastoreOf(text: string): { name: string; path: string } {
  const at = text.indexOf('=');
  if (at > 0 && text[at + 1] === '/') return { name: text.slice(0, at), path: text.slice(at + 1) };
  throw new RouseError('bad-request', `--datastore "${text}" is not NAME=PATH`, {
    advice: 'Give a name and an absolute path: --datastore prod=/srv/images',
  });
}

async function testHypervisor(reference: string, terminal: Terminal): Promise<void> {
  const client = await terminal.client();
  const path = `/v1/hypervisors/${encodeURIComponent(reference)}/test`;
  const report = (await client.post(path)) as TestReport;
  terminal.answer(report, () => {
    const verdict = report.ok
      ? terminal.paint('green', 'is usable')
      : terminal.paint('red', 'is not usable');
    terminal.print(`${printable(reference)} ${verdict} (${printable(report.version)}).`);
    for (const [name, value] of Object.entries(report.facts)) {
      terminal.print(`${printable(name).padEnd(20)}${printable(value)}`);
    }
    for (const problem of report.problems) {
      terminal.print(terminal.paint('yellow', `! ${printable(problem.message)}`));
      terminal.print(`  → ${printable(problem.advice)}`);
    }
  });
  if (report.ok) return;
  throw new RouseError('hypervisor-error', `${reference} did not pass its test`, {
    advice: report.problems[0]?.advice ?? 'Read what it said.',
  });
}
