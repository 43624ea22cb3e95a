import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import { replaceFile } from '../lib/replace-file.ts';

/**
 * What makes a data directory that of an enrolled proxy: which server it is of, what it is called,
 * and its identity, in one file that is replaced as a whole when the certificate is renewed.
 */
const joinedProxy = z.object({
  name: z.string(),
  server: z.string(),
  /** As hypervisor hosts reach it, the preferred first. */
  addresses: z.array(z.string()),
  /** Where the server calls it. */
  callAddress: z.string(),
  /** 0: any free port, told with each heartbeat. */
  callPort: z.number(),
  identity: z.object({ key: z.string(), certificate: z.string(), authority: z.string() }),
});
export type JoinedProxy = z.infer<typeof joinedProxy>;

/** undefined: the directory is no enrolled proxy's. Throws `corrupt-data`. */
export function readJoined(file: string): JoinedProxy | undefined {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return undefined;
    throw toRouseError(error, file);
  }
  try {
    return joinedProxy.parse(JSON.parse(text));
  } catch (error) {
    throw new RouseError('corrupt-data', `${file} is damaged`, {
      advice: 'Enrol the proxy again: remove that file, then rouse proxy enrol.',
      cause: error,
    });
  }
}

export async function writeJoined(file: string, joined: JoinedProxy): Promise<void> {
  await replaceFile(file, `${JSON.stringify(joined, null, 2)}\n`);
}
