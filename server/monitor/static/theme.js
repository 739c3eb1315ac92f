// Before anything is drawn: the theme this reader chose last, unless the address names one.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  try {
    const theme = root.dataset.theme || localStorage.getItem("fedcxr-theme");
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  } catch { /* storage may be forbidden: then the system's theme holds */ }
})();
