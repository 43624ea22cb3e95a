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
    return (await this.runBytes(values, options)).toString();
  }

  async runBytes(values: readonly string[], options: CommandOptions = {}): Promise<Buffer> {
    const result = await runCommand('virsh', ['-q', '-k0', '-c', this.uri, ...values], {
      timeoutMs: libvirtLimits.callTimeoutMs,
      ...options,
      environment: this.#environment,
    });
    if (result.exit === 0) return result.stdout;
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

  /** Gives an XML document to a subcommand that takes a file name. */
  withXml(values: readonly string[], xml: string): Promise<string> {
    return this.run([...values, '/dev/stdin'], { input: xml });
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
  [/failed to connect to the hypervisor|[Cc]onnection (refused|reset)/u, 'host-unreachable'],
  [/End of file while reading data|[Cc]annot recv data|unable to connect/u, 'host-unreachable'],
  [/already exists|is already defined/u, 'already-exists'],
  [/No space left on device/u, 'disk-full'],
];

function virshError(command: string, uri: string, stderr: string): RouseError {
  const said = stderr.replaceAll(/^error: /gmu, '').trim() || 'it failed without a word';
  const code = meanings.find(([words]) => words.test(said))?.[1] ?? 'hypervisor-error';
  const advice =
    code === 'host-unreachable'
      ? { advice: `Check that libvirt runs: virsh -c '${uri}' version` }
      : {};
  return new RouseError(code, `virsh ${command}: ${said}`, { details: { uri }, ...advice });
}
