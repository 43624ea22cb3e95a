import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { RouseError, systemErrorCode, toRouseError } from '../../errors.ts';

/**
 * The little that libvirt cannot remember for us, in one JSON file: which exports are "mounted"
 * (QEMU's own NFS client mounts nothing on the host), which disk files we created (so that no
 * foreign file is ever taken for ours), and whether KVM was useful since this boot. Written whole,
 * synced, renamed into place; changes follow one another.
 */
const shape = z.object({
  version: z.literal(1),
  datastores: z.array(
    z.object({
      name: z.string(),
      server: z.string(),
      path: z.string(),
      nfsPort: z.number(),
      mountPort: z.number(),
      client: z.enum(['qemu', 'kernel']),
    }),
  ),
  createdFiles: z.array(z.string()),
  kvm: z.object({ bootId: z.string(), usable: z.boolean(), why: z.string() }).optional(),
});

export type LibvirtState = z.infer<typeof shape>;
export type MountedDatastore = LibvirtState['datastores'][number];

const empty: LibvirtState = { version: 1, datastores: [], createdFiles: [] };

export class LibvirtStateFile {
  readonly directory: string;
  readonly #path: string;
  #state: LibvirtState;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(directory: string, path: string, state: LibvirtState) {
    this.directory = directory;
    this.#path = path;
    this.#state = state;
  }

  static async open(directory: string): Promise<LibvirtStateFile> {
    const path = join(directory, 'libvirt.json');
    try {
      await mkdir(directory, { recursive: true });
      return new LibvirtStateFile(directory, path, await readState(path));
    } catch (error) {
      throw toRouseError(error, path);
    }
  }

  get current(): LibvirtState {
    return this.#state;
  }

  /** Durable when it resolves. */
  change(how: (state: LibvirtState) => LibvirtState): Promise<void> {
    const next = this.#last.then(async () => {
      const state = how(this.#state);
      await this.#write(state);
      this.#state = state;
    });
    this.#last = next.catch(() => undefined);
    return next;
  }

  async #write(state: LibvirtState): Promise<void> {
    const fresh = `${this.#path}.new`;
    try {
      await writeSynced(fresh, `${JSON.stringify(state, undefined, 2)}\n`);
      await rename(fresh, this.#path);
      const directory = await open(this.directory, 'r');
      await directory.sync().finally(() => directory.close());
    } catch (error) {
      throw toRouseError(error, this.#path);
    }
  }
}

async function readState(path: string): Promise<LibvirtState> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return empty;
    throw error;
  }
  const parsed = shape.safeParse(jsonOrUndefined(text));
  if (parsed.success) return parsed.data;
  throw new RouseError('corrupt-data', `${path}: ${z.prettifyError(parsed.error)}`, {
    advice: 'Move it away; machines on mounted datastores are still found by their mark.',
  });
}

function jsonOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function writeSynced(path: string, text: string): Promise<void> {
  const handle = await open(path, 'w', 0o600);
  try {
    await handle.writeFile(text);
    await handle.sync();
  } finally {
    await handle.close();
  }
}
