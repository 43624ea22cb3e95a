import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { RouseError, isRouseError } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';
import { runCommand } from '../../lib/command.ts';
import type { CommandOptions } from '../../lib/command.ts';
import { libvirtLimits } from '../../limits.ts';

/** `virsh -c URI`: one process for each call, its words kept in every error. */
export class Virsh {
  readonly uri: string;
  readonly #environment: Readonly<Record<string, string>>;

  constructor(uri: string, environment: Readonly<Record<string, string>> = {}) {
    this.uri = uri;
    this.#environment = environment;
  }

  /** Whether libvirt runs on this machine, so that its files are our files. */
  get isLocal(): boolean {
    return remoteHost(this.uri) === undefined;
  }

  /** What virsh printed. */
  async run(values: readonly string[], options: CommandOptions = {}): Promise<string> {
    const result = await runCommand('virsh', ['-q', '-k0', '-c', this.uri, ...values], {
      timeoutMs: libvirtLimits.callTimeoutMs,
      ...options,
      environment: this.#environment,
    });
    if (result.exit === 0) return result.stdout.toString();
    throw virshError(values[0] ?? 'virsh', this.uri, result.stderr);
  }

  /** Undefined when virsh refuses with one of these words; other failures are thrown. */
  async runUnless(words: RegExp, values: readonly string[]): Promise<string | undefined> {
    try {
      return await this.run(values);
    } catch (error) {
      if (isRouseError(error) && words.test(error.message)) return undefined;
      throw error;
    }
  }

  /**
   * Gives documents to a subcommand that takes files. (Node's pipes are sockets, which virsh cannot
   * open as /dev/stdin.) The files are ours alone and gone afterwards.
   */
  withXml(
    documents: readonly string[],
    values: (...paths: readonly string[]) => readonly string[],
  ): Promise<string> {
    return inPrivateDirectory(async (directory) => {
      const paths = documents.map((_, index) => join(directory, `${index}.xml`));
      for (const [index, path] of paths.entries()) {
        await writeFile(path, documents[index] ?? '', { mode: 0o600 });
      }
      return this.run(values(...paths));
    });
  }

  /** What a subcommand writes to a file. */
  readingFile(bytesMax: number, values: (path: string) => readonly string[]): Promise<Buffer> {
    return inPrivateDirectory(async (directory) => {
      const path = join(directory, 'output');
      await this.run(values(path));
      const { size } = await stat(path);
      if (size <= bytesMax) return readFile(path);
      throw new RouseError('corrupt-data', `virsh ${values('')[0]} wrote ${size} bytes`);
    });
  }
}

async function inPrivateDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'rouse-virsh-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** The host in `qemu+ssh://user@host:port/system`; undefined for a local URI. */
export function remoteHost(uri: string): string | undefined {
  const match = /^[a-z0-9]+(?:\+([a-z0-9]+))?:\/\/([^/?]*)/iu.exec(uri);
  const authority = match?.[2] ?? '';
  if (authority === '') return undefined;
  const host = authority.slice(authority.lastIndexOf('@') + 1);
  const bracketed = /^\[([^\]]+)\]/u.exec(host)?.[1];
  return bracketed ?? host.replace(/:\d+$/u, '');
}

/** virsh has no error codes on its command line; these are the words of libvirt 5 to 11. */
const meanings: readonly (readonly [RegExp, ErrorCode])[] = [
  [/failed to get domain|[Dd]omain not found|no domain with matching/u, 'not-found'],
  [/failed to get (pool|network|vol)|[Ss]torage (pool|volume) not found/u, 'not-found'],
  [/[Cc]annot acquire state change lock|another .*job|already.*in progress/u, 'busy'],
  [/failed to connect to the hypervisor|[Cc]onnection (refused|reset)/u, 'hypervisor-unreachable'],
  [
    /End of file while reading data|[Cc]annot recv data|unable to connect/u,
    'hypervisor-unreachable',
  ],
  [/already exists|is already defined/u, 'already-exists'],
  [/No space left on device/u, 'disk-full'],
];

function virshError(command: string, uri: string, stderr: string): RouseError {
  const said = stderr.replaceAll(/^error: /gmu, '').trim() || 'it failed without a word';
  const code = meanings.find(([words]) => words.test(said))?.[1] ?? 'hypervisor-error';
  const advice =
    code === 'hypervisor-unreachable'
      ? { advice: `Check that libvirt runs: virsh -c '${uri}' version` }
      : {};
  return new RouseError(code, `virsh ${command}: ${said}`, { details: { uri }, ...advice });
}
