import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vitest/config'

// Relative addresses, so that the page also works behind a proxy that serves it under a path.
export default defineConfig({
  base: './',
  plugins: [svelte()],
  build: {
    outDir: '../src/cotrunk/service/static',
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page's Content-Security-Policy allows no inline scripts
    modulePreload: { polyfill: false },
  },
  server: { proxy: { '/v1': 'http://127.0.0.1:8000' } },
  test: { include: ['tests/**/*.test.ts'] },
})
